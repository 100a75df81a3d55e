"""A teacher's prompt encoder and mask decoder, from an artefact of the store; frozen, without the image encoder."""

# B images, P prompts of each, D g width and side of the embedding, h w sides of a mask, T output tokens

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.data.stored_features import Grid
from featstore import FeatureStore
from featstore.errors import ConfigError, shorten
from featstore.format import mask_decoder
from featstore.format.manifest_records import ArtefactRecord


class DecodedMasks(NamedTuple):
    """What the decoder makes of an embedding and prompts."""

    logits: Tensor
    """(B, P, h, w); above 0 is inside."""
    iou: Tensor
    """(B, P) the decoder's own estimate of the mask's intersection over union."""
    tokens: Tensor
    """(B, P, T, D) output tokens of its two-way transformer: that of the IoU and those of the masks."""


class PromptDecoder(nn.Module):
    """Prompt encoder and mask decoder of a SAM: one mask for each point.

    Attributes:
        width: D.
        side: g.
    """

    def __init__(self, settings: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        from transformers import SamConfig
        from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPromptEncoder

        given: dict[str, Any] = dict(settings)
        config: Any = SamConfig(**given)
        config.mask_decoder_config._attn_implementation = "sdpa"
        self.prompt_encoder = SamPromptEncoder(config)
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)
        prompts = config.prompt_encoder_config
        self.width, self.side = int(prompts.hidden_size), int(prompts.image_embedding_size)
        self.pixels = int(prompts.image_size)
        self.num_tokens = 1 + int(self.mask_decoder.num_mask_tokens)
        self._seen: list[Tensor] = []
        self.mask_decoder.transformer.register_forward_hook(
            lambda module, given, out: self._seen.append(out[0])
        )
        self.eval().requires_grad_(False)

    def forward(self, embedding: Tensor, points: Tensor) -> DecodedMasks:
        """Decode one mask per point; gradients flow to the embedding alone.

        Args:
            embedding: (B, D, g, g).
            points: (B, P, 2) x and y from -0.5 at the view's left or upper edge to 0.5 at the other.
        """
        # transformers puts a point in the middle of its pixel.
        pixels = ((points + 0.5) * self.pixels - 0.5)[:, :, None]
        labels = torch.ones(pixels.shape[:3], dtype=torch.int64, device=points.device)
        sparse, dense = self.prompt_encoder(pixels, labels, None, None)
        self._seen.clear()
        logits, iou = self.mask_decoder(
            image_embeddings=embedding.float(),
            image_positional_embeddings=self._places(len(embedding)),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return DecodedMasks(
            logits[:, :, 0], iou[:, :, 0], self._seen.pop()[:, :, : self.num_tokens]
        )

    def _places(self, images: int) -> Tensor:
        """(B, D, g, g) positional encoding of the embedding's places."""
        encode = self.prompt_encoder.shared_embedding
        middle = torch.arange(self.side, device=encode.positional_embedding.device) + 0.5
        y, x = torch.meshgrid(middle / self.side, middle / self.side, indexing="ij")
        places: Tensor = encode(torch.stack([x, y], dim=-1))
        return places.permute(2, 0, 1).expand(images, -1, -1, -1)


def read_decoder(
    store: FeatureStore,
    name: str = mask_decoder.NAME,
    *,
    grid: Grid | None = None,
    setting: str = "artefact",
) -> PromptDecoder:
    """The decoder that a store holds for its embeddings.

    Args:
        grid: Embeddings that it must fit; not compared if None.
        setting: That names it, for messages.
    """
    where = f"{setting} {name}"
    if name not in store.manifest.artefacts:
        raise ConfigError(
            f"{where}: {store.address} has the artefacts {shorten(sorted(store.manifest.artefacts)) or 'none'}. "
            "Extract a store with a SAM as the teacher (--teacher.library transformers): it then holds mask_decoder."
        )
    tensors = store.artefact(name)
    try:
        settings = mask_decoder.settings_of(tensors)
        if grid is not None:
            _check_fits(settings["prompt_encoder_config"], store.manifest.artefacts[name], grid)
        with torch.device("meta"):  # without memory, whatever sizes the settings name
            decoder = PromptDecoder(settings)
        weights = {key: value for key, value in tensors.items() if not key.startswith("text.")}
        decoder.load_state_dict(
            {key: torch.tensor(value) for key, value in weights.items()}, assign=True
        )
    except ImportError as error:
        raise ConfigError(
            f"{where}: its modules are those of transformers, which cannot be imported ({error}). Install it: pip "
            "install 'featstore-distill[transformers]'."
        ) from None
    except Exception as error:  # a store may hold any settings, and transformers raises many kinds
        raise ConfigError(f"{where} of {store.address}: {error}") from None
    return decoder.eval().requires_grad_(False)


def _check_fits(prompts: dict[str, Any], record: ArtefactRecord, grid: Grid) -> None:
    width, side = prompts["hidden_size"], prompts["image_size"] // prompts["patch_size"]
    teacher = grid.store.manifest.fields[grid.field].teacher
    if (width, side, record.teacher) != (grid.width, grid.side, teacher):
        raise ConfigError(
            f"made for embeddings of {side} x {side} x {width} by teacher {record.teacher}, but field {grid.field} is "
            f"{grid.side} x {grid.side} x {grid.width} by teacher {teacher}. Name the field with the embeddings in "
            "full size (--grid_field)."
        )
