"""Causal language models of transformers: load, generate, log-probabilities, a few steps of training, accuracy."""

# B texts, L tokens

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featstore.errors import ConfigError, shorten
from featstore.files.array_types import Array

if TYPE_CHECKING:
    from torch import Tensor

INSTALL = "pip install 'featstore-distill[prefer]'"


class Item(NamedTuple):
    """A held-out question."""

    prompt: str
    answer: str


class LanguageModel(NamedTuple):
    """A model, its tokenizer, and where it came from."""

    model: Any
    tokenizer: Any
    name: str

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights."""
        from featstore.format.weights_hash import state_sha256

        return state_sha256(self.model)


def check_model(name: str, setting: str) -> None:
    """Refuse what is no causal language model, before anything heavy is loaded."""
    try:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError:
        raise ConfigError(f"{setting} {name}: transformers is missing. {INSTALL}") from None
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{setting} {name}: no model can be read there ({reason}). Expected a folder with config.json, weights and "
            "tokenizer, or a name on the hub."
        ) from None
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    found = config.architectures or []
    if not any(architecture in known for architecture in found):
        raise ConfigError(
            f"{setting} {name}: {', '.join(found) or 'a model without an architecture'} of type {config.model_type} is "
            "no causal language model. Expected one such as LlamaForCausalLM or GPT2LMHeadModel."
        )


def load_model(name: str | Path, setting: str = "model") -> LanguageModel:
    """Load a causal language model and its tokenizer: float32, eval mode, on the accelerator if there is one."""
    check_model(str(name), setting)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True)
    except (
        Exception
    ) as error:  # safetensors, the hub's client and transformers each raise their own
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{setting} {name}: weights or tokenizer cannot be read ({reason}). Fetch the model again."
        ) from error
    model, told = loaded
    missing = sorted(told["missing_keys"])
    if missing:
        raise ConfigError(
            f"{setting} {name}: {len(missing)} tensors are not in its weights, e.g. {shorten(missing)}; they would be "
            "random. Fetch the model again."
        )
    model = model.float()
    if tokenizer.eos_token is None:
        raise ConfigError(f"{setting} {name}: its tokenizer has no end-of-text token (eos_token).")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return LanguageModel(
        model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, str(name)
    )


def generate(
    lm: LanguageModel, prompts: Sequence[str], *, max_tokens: int, temperature: float = 0.0, seed: Sequence[int] = (0,),
    batch: int = 64,
) -> list[str]:  # fmt: skip
    """Continue prompts; texts without special tokens. The random numbers of a batch depend on seed and place alone."""
    import torch

    draw: dict[str, Any] = {"do_sample": False}
    if temperature:
        draw = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    texts: list[str] = []
    for start in range(0, len(prompts), batch):
        inputs = _tokens(lm, list(prompts[start : start + batch]))
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(int(np.random.default_rng([*seed, start]).integers(2**62)))
            found = lm.model.generate(
                **inputs, max_new_tokens=max_tokens, pad_token_id=lm.tokenizer.pad_token_id,
                eos_token_id=lm.tokenizer.eos_token_id, **draw,
            )  # fmt: skip
        new = found[:, inputs["input_ids"].shape[1] :]
        texts += lm.tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def _tokens(lm: LanguageModel, texts: list[str]) -> dict[str, "Tensor"]:
    found = lm.tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    return {name: value.to(lm.model.device) for name, value in found.items()}


def _encode(lm: LanguageModel, prompt: str, completion: str) -> tuple[list[int], int]:
    """Tokens of a prompt with its completion and end, and how many are the prompt's; the rule of TRL."""
    end = "" if completion.endswith(lm.tokenizer.eos_token) else lm.tokenizer.eos_token
    alone = lm.tokenizer(prompt)["input_ids"]
    both = lm.tokenizer(prompt + completion + end)["input_ids"]
    differing = (i for i, (one, other) in enumerate(zip(alone, both, strict=False)) if one != other)
    return both, next(differing, min(len(alone), len(both)))


def _token_logps(lm: LanguageModel, pairs: Sequence[tuple[str, str]]) -> tuple["Tensor", "Tensor"]:
    """(B, L - 1) log-probabilities of the next tokens, and which belong to the completions."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    encoded = [_encode(lm, *pair) for pair in pairs]
    ids_BL = pad_sequence([torch.tensor(ids) for ids, _ in encoded], batch_first=True).to(
        lm.model.device
    )
    places_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
    lengths_B1 = torch.tensor([[len(ids)] for ids, _ in encoded], device=ids_BL.device)
    begins_B1 = torch.tensor([[begin] for _, begin in encoded], device=ids_BL.device)
    logits_BLV = lm.model(input_ids=ids_BL, attention_mask=(places_L < lengths_B1).long()).logits
    logps_BLV = logits_BLV[:, :-1].float().log_softmax(-1)
    logps_BL = logps_BLV.gather(2, ids_BL[:, 1:, None]).squeeze(2)
    return logps_BL, ((places_L >= begins_B1) & (places_L < lengths_B1))[:, 1:]


def log_probabilities(
    lm: LanguageModel, pairs: Sequence[tuple[str, str]], *, batch: int = 32
) -> Array:
    """Log-probability of each completion with its end, given its prompt.

    Args:
        pairs: prompt and completion.

    Returns:
        (n,) float32.
    """
    import torch

    found = [np.empty(0, np.float32)]
    for start in range(0, len(pairs), batch):
        with torch.inference_mode():
            logps_BL, mine_BL = _token_logps(lm, pairs[start : start + batch])
        found.append((logps_BL * mine_BL).sum(1).cpu().numpy())
    return np.concatenate(found)


def fine_tune(
    lm: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
) -> None:
    """Train on prompts and completions in place; the loss is that of the completions. AdamW, cosine to zero."""
    import torch

    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    lm.model.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for rows in _batches(len(pairs), steps=steps, batch=batch, seed=seed):
            logps_BL, mine_BL = _token_logps(lm, [pairs[row] for row in rows])
            (-(logps_BL * mine_BL).sum() / mine_BL.sum()).backward()
            torch.nn.utils.clip_grad_norm_(lm.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
    lm.model.eval()


def _batches(count: int, *, steps: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Rows of each step: shuffled passes through all rows."""
    rng = np.random.default_rng(seed)
    rows: list[int] = []
    for _ in range(steps):
        while len(rows) < batch:
            rows += rng.permutation(count).tolist()
        yield rows[:batch]
        rows = rows[batch:]


def answer_of(text: str, after: str) -> str:
    """The answer in a rationale: behind the last marker, to the end of the line; "" without the marker."""
    if after and after not in text:
        return ""
    tail = text.rpartition(after)[2] if after else text
    return tail.strip().partition("\n")[0].strip()


def accuracy(
    lm: LanguageModel, items: Sequence[Item], *, after: str, max_tokens: int, example: str = ""
) -> float:
    """Share of held-out questions whose greedy answer is right.

    Args:
        example: put before every prompt (in-context learning).
    """
    texts = generate(lm, [example + item.prompt for item in items], max_tokens=max_tokens)
    right = [answer_of(text, after) == item.answer for text, item in zip(texts, items, strict=True)]
    return float(np.mean(right))
