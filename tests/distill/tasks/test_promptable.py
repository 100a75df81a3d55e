"""Task promptable and method tinysam: prompts, losses by hand, the decoder in the store, bad input, runs."""

import dataclasses
import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import distill
import featstore
from distill.commands.config import EvaluateConfig
from distill.commands.evaluate import run as evaluate
from distill.commands.export import run as export
from distill.commands.train import run
from distill.config import DataConfig
from distill.data.rules import rule_of
from distill.export.config import CalibrationConfig, ExportConfig, LatencyConfig
from distill.losses.masks import (
    draw_objects,
    draw_points,
    hardness,
    innermost,
    intersection_over_union,
    mask_losses,
)
from distill.methods.tinysam import TinySAMConfig
from distill.tasks.everything import everything
from distill.tasks.prompt_decoder import DecodedMasks, PromptDecoder, read_decoder
from distill.tasks.promptable import Promptable, PromptableConfig
from distill.tasks.promptable_parts import Prompter
from featstore import FeatureStore
from featstore.errors import ConfigError
from featstore.format import mask_decoder
from featstore.format.artefacts import pack_texts
from featstore.format.views import View, cut
from tests.conftest import ROOT
from tests.distill.conftest import MakeConfig
from tests.distill.resume import check_resume
from tests.distill.tasks.test_drawing import check_drawn
from tests.distill.tasks.test_segment import write_masks
from tests.sam import PIXELS, SIDE, WIDTH, save_sam


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a teacher, and the teacher."""
    folder = tmp_path_factory.mktemp("sam")
    return folder, save_sam(folder)


@pytest.fixture(scope="module")
def embeddings(sam: Any, images: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store of its embeddings, with its decoder."""
    return extract_embeddings(sam[0], images, tmp_path_factory.mktemp("store") / "s")


def extract_embeddings(teacher: Path, images: Path, out: Path, side: int = SIDE) -> FeatureStore:
    """The store of a teacher's grid, averaged where ``side`` is smaller than its own."""
    return featstore.extract(
        images,
        teacher={"library": "transformers", "name": str(teacher), "precision": "fp32"},
        fields=["mean", f"grid{side}"],
        out=out,
        workers=0,
        progress=False,
    )


def box(rows: slice, columns: slice, size: int = 8) -> torch.Tensor:
    """(1, 1, size, size) bool, true in a rectangle."""
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
    mask[..., rows, columns] = True
    return mask


def test_losses_by_hand() -> None:
    """One pixel of four is the object, one is wrong; an invalid prompt counts nothing."""
    truth = torch.tensor([[[[1, 0], [0, 0]]], [[[1, 1], [1, 1]]]]).bool()
    logits = torch.tensor([[[[1.0, -1.0], [-1.0, 2.0]]], [[[9.0, 9.0], [9.0, 9.0]]]])
    valid = torch.tensor([[True], [False]])
    found = mask_losses(logits, torch.tensor([[0.75], [0.0]]), truth, valid)
    one, two = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    easy, wrong = -((1 - one) ** 2) * math.log(one), -(two**2) * math.log(1 - two)
    focal = (0.25 * easy + 2 * 0.75 * easy + 0.75 * wrong) / 4
    dice = 1 - (2 * one + 1) / (one + 2 * (1 - one) + two + 1 + 1)
    assert found["focal"].item() == pytest.approx(focal, rel=1e-5)
    assert found["dice"].item() == pytest.approx(dice, rel=1e-5)
    assert found["iou"].item() == pytest.approx(abs(0.75 - 1 / 2), rel=1e-5)
    nothing = mask_losses(logits.requires_grad_(), torch.zeros(2, 1), truth, valid & False)
    torch.stack(list(nothing.values())).sum().backward()
    assert [value.item() for value in nothing.values()] == [0, 0, 0]


def test_the_weight_of_hard_masks_by_hand() -> None:
    """sigmoid(IoU of the teacher / IoU of the student - 1): about a half where both are alike, else more."""
    truth = box(slice(0, 4), slice(0, 4))
    half = torch.where(box(slice(0, 2), slice(0, 4)), 1.0, -1.0)
    whole = torch.where(truth, 1.0, -1.0)
    found = [hardness(own, other, truth).item() for own, other in ((whole, whole), (half, whole))]
    expected = [1 / (1 + math.exp(-(1 / (iou + 0.01) - 1))) for iou in (1.0, 0.5)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert intersection_over_union(half > 0, truth).item() == 0.5


def test_points_lie_in_their_object() -> None:
    """Drawn points at the middle of a pixel of the mask; the innermost pixel; images without objects are not valid."""
    mask = box(slice(2, 7), slice(1, 4))
    for _ in range(20):
        x, y = ((draw_points(mask)[0, 0] + 0.5) * 8 - 0.5).tolist()
        assert mask[0, 0, round(y), round(x)]
        assert (x, y) == (round(x), round(y))
    torch.testing.assert_close(innermost(mask)[0, 0], torch.tensor([2.5, 3.5]) / 8 - 0.5)
    torch.testing.assert_close(innermost(~mask & False)[0, 0], torch.tensor([0.5, 0.5]) / 8 - 0.5)
    corner = box(slice(0, 1), slice(7, 8))
    expected = torch.tensor([7.5, 0.5]) / 8 - 0.5
    torch.testing.assert_close(draw_points(mask & False, otherwise=corner)[0, 0], expected)
    several = torch.cat([mask & False, mask], dim=1)
    truth, valid = draw_objects(torch.cat([several, several & False]), 3)
    assert (truth[0] == mask[0]).all()
    assert valid.tolist() == [[True] * 3, [False] * 3]


def test_the_decoder_is_that_of_the_teacher(sam: Any, embeddings: FeatureStore) -> None:
    """From the artefact alone: masks and IoU of ``SamModel`` for the same embedding and points."""
    model = sam[1]
    tensors = embeddings.artefact(mask_decoder.NAME)
    decoder = PromptDecoder(mask_decoder.settings_of(tensors))
    weights = {key: torch.tensor(v) for key, v in tensors.items() if not key.startswith("text.")}
    decoder.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(2, WIDTH, SIDE, SIDE, generator=generator)
    pixels = torch.randint(PIXELS, (2, 3, 2), generator=generator)
    with torch.no_grad():
        expected = model(
            image_embeddings=embedding,
            input_points=pixels[:, :, None].float(),
            multimask_output=False,
        )
    found = decoder(embedding, (pixels + 0.5) / PIXELS - 0.5)
    torch.testing.assert_close(found.logits, expected.pred_masks[:, :, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.iou, expected.iou_scores[:, :, 0], rtol=1e-4, atol=1e-5)
    assert found.tokens.shape == (2, 3, 5, WIDTH)


def test_the_stored_embedding_is_the_live_one(
    sam: Any, embeddings: FeatureStore, images: Path
) -> None:
    """Of the same view, within the tolerance of float16; the same command finds the store complete."""
    again = extract_embeddings(sam[0], images, embeddings.path)
    assert again.fingerprint == embeddings.fingerprint
    names = ["train/left/000.png", "test/top/001.png"]
    stored = embeddings.gather(f"grid{SIDE}", embeddings.rows_of(names))[:, 0]
    record = embeddings.manifest.teachers["teacher"].preprocessing
    assert (record.size, record.crop_mode, record.crop_pct) == ((PIXELS, PIXELS), "center", 1.0)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (record.mean, record.std))
    rule = rule_of(embeddings, "mean")
    for name, values in zip(names, stored, strict=True):
        seen = cut(
            Image.open(images / name).convert("RGB"),
            rule.frame((20, 24), View(kind="canonical"), sample_id=name, size=(PIXELS, PIXELS)).box,
            size=(PIXELS, PIXELS),
            interpolation="bilinear",
            mirrored=False,
        )
        pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1) / 255
        with torch.no_grad():
            live = sam[1].get_image_embeddings(((pixels - mean) / std)[None])[0]
        np.testing.assert_allclose(
            values.astype(np.float32), live.permute(1, 2, 0).numpy(), rtol=2e-3, atol=2e-3
        )


@pytest.fixture
def make_prompts(
    make_config: MakeConfig, images: Path, embeddings: FeatureStore, tmp_path: Path
) -> Any:
    """Settings of a run; ten images have no mask."""
    folder = write_masks(images, tmp_path / "masks", skip="train/left/00")
    for path in folder.rglob("*.png"):
        values = np.array(Image.open(path))
        values[values == 255] = 0
        Image.fromarray(values).save(path)

    def make(masks: Path = folder, methods: Any = ("tinysam",), **changes: Any) -> Any:
        options = {"masks": str(masks), "objects": ["patch"], "rounds": 3, "prompts": 2, **changes}
        return make_config(
            task="promptable",
            store=str(embeddings.path),
            field="mean",
            data=DataConfig(unlabelled=["train/*"]),
            methods=list(methods),
            options={"promptable": PromptableConfig(**options)},
            student__name="test_efficientnet",
            train__epochs=2,
            train__lr=3e-3,
            train__checkpoint_every=2,
        )

    return make


@pytest.mark.slow
def test_a_run(make_prompts: Any, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every term is there, the teacher's image encoder is never built, a stopped run ends in the same bits."""
    from transformers.models.sam import modeling_sam

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the teacher's image encoder was built")

    for name in ("SamVisionEncoder", "SamModel", "SamVisionModel"):
        monkeypatch.setattr(getattr(modeling_sam, name), "__init__", refuse)
    straight = make_prompts()
    (record,) = run(dataclasses.replace(straight, report=True))
    assert (record["num_labelled"], record["num_unlabelled"], record["num_test"]) == (26, 10, 12)
    assert record["score"]["name"] == "miou"  # type: ignore[index]

    files = ("student.safetensors", "task_head.safetensors", "evaluation.json")
    check_resume(straight, "tinysam", after=3, files=files)
    folder = Path(straight.out) / "tinysam" / "seed0"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line if name.startswith("loss/")}
    assert names == {f"loss/{n}" for n in ("focal", "dice", "iou", "embedding", "tokens", "masks")}
    assert not any("decoder" in key for key in load_file(folder / "task_head.safetensors"))
    model = distill.load_student(folder)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, WIDTH, SIDE, SIDE)
    kept = json.loads((folder / "evaluation.json").read_text())
    check_drawn(folder, 12)
    assert set(kept["per_object_iou"]) == {"patch"}
    assert kept["teacher"]["miou"] != kept["miou"]
    again = evaluate(EvaluateConfig(model=str(folder), workers=0))
    assert again["miou"] == pytest.approx(kept["miou"])
    example: Any = runpy.run_path(str(ROOT / "docs" / "examples" / "everything.py"))
    picture = images / "test" / "top" / "000.png"
    assert example["main"](str(folder), str(picture), str(folder / "all.png"), "4") >= 0
    with Image.open(folder / "all.png") as drawn, Image.open(picture) as whole:
        assert drawn.size == whole.size
    with pytest.raises(ConfigError, match="--store"):
        evaluate(EvaluateConfig(model=str(folder), store="none", workers=0))


@pytest.mark.slow
def test_the_embedding_comes_close_to_the_stored_one(make_prompts: Any) -> None:
    """The distance to the embedding falls, and all weights of the student's head are trained."""
    config = make_prompts()
    config = dataclasses.replace(
        config,
        options={**config.options, "tinysam": TinySAMConfig(tokens=0.0, masks=0.0)},
        train=dataclasses.replace(config.train, epochs=8),
    )
    run(config)
    path = Path(config.out) / "tinysam" / "seed0" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    values = [line["loss/embedding"] for line in lines if "loss/embedding" in line]
    assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5])


def test_hard_prompts_move_into_what_is_left_out() -> None:
    """A decoder that finds the left half: after a round the point lies in the right one; one answer per embedding."""

    class Half(torch.nn.Module):
        def forward(self, embedding: Any, points: Any) -> Any:
            logits = -torch.ones(*points.shape[:2], 8, 8)
            logits[..., :4] = 1
            return DecodedMasks(logits, points[..., 0], points)

    decoder: Any = Half()
    targets = torch.ones(3, 8, 8)
    torch.manual_seed(0)
    drawn = set()
    for rounds in (1, 2):
        prompter = Prompter(decoder, objects=1, overlap=False, prompts=5, rounds=rounds)
        sides = []
        for _ in range(12):
            embedding = torch.zeros(3, 4, 2, 2)
            found = prompter.prompt(embedding, targets)
            assert prompter.prompt(embedding, targets) is found
            sides.append(bool((found.points[..., 0] > 0).all()))
        drawn.add((rounds, any(sides), all(sides)))
    assert drawn == {(1, False, False), (2, True, False)}


def test_masks_that_overlap() -> None:
    """Bit k of a value is object k; without overlap value k + 1 is."""
    decoder: Any = None
    values = torch.tensor([[[0, 1, 2, 3]]])
    found = [
        Prompter(decoder, objects=2, overlap=overlap, prompts=1, rounds=1).masks(values)[0, :, 0]
        for overlap in (True, False)
    ]
    assert found[0].int().tolist() == [[0, 1, 0, 1], [0, 0, 1, 1]]
    assert found[1].int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]


def test_wrong_settings(make_prompts: Any, make_config: MakeConfig, tmp_path: Path) -> None:
    """Before anything is trained: masks of another size or value, no object, other artefacts, another field, task."""
    wrong = tmp_path / "wrong" / "train" / "left"
    wrong.mkdir(parents=True)
    Image.fromarray(np.ones((20, 23), np.uint8)).save(wrong / "000.png")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"masks": tmp_path / "wrong"}, r"000\.png.*23 x 20.*24 x 20"),
        ({"objects": []}, r"--promptable\.objects"),
        ({"decoder": "head"}, r"--promptable\.decoder head.*mask_decoder"),
    ]
    for changes, values in cases:
        with pytest.raises(ConfigError, match=values):
            run(make_prompts(**changes))
    for path in (tmp_path / "masks").rglob("*.png"):
        Image.fromarray(np.full((20, 24), 7, np.uint8)).save(path)
    with pytest.raises(ConfigError, match=r"\b7\b.*promptable.*0 to 1\."):
        run(make_prompts())
    with pytest.raises(ConfigError, match=r"--methods tinysam.*classify"):
        run(make_config(methods=["tinysam"]))
    with pytest.raises(ConfigError, match="17"):
        PromptableConfig(objects=[str(number) for number in range(17)])


def test_a_decoder_of_another_size(
    make_prompts: Any, sam: Any, images: Path, tmp_path: Path
) -> None:
    """An artefact whose shape does not fit the stored grid is refused with both shapes."""
    store = extract_embeddings(sam[0], images, tmp_path / "small", side=4)
    config = dataclasses.replace(make_prompts(), store=str(store.path))
    with pytest.raises(ConfigError, match=r"8 x 8 x 32.*grid4.*4 x 4 x 32"):
        run(config)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("mask_decoder_config", "num_hidden_layers", 10**9),
        ("mask_decoder_config", "mlp_dim", 2**40),
        ("mask_decoder_config", "hidden_act", "os.system"),
        ("prompt_encoder_config", "patch_size", 0),
        ("vision_config", "num_pos_feats", None),
    ],
)
def test_settings_of_a_hostile_store(
    embeddings: FeatureStore, section: str, name: str, value: Any
) -> None:
    """Settings that do not fit the tensors beside them are refused, without their memory or time."""
    tensors = embeddings.artefact(mask_decoder.NAME)
    settings = mask_decoder.settings_of(tensors)
    settings[section][name] = value
    changed = {**tensors, **pack_texts([json.dumps(settings)])}
    store: Any = SimpleNamespace(
        address="a store", manifest=embeddings.manifest, artefact=lambda name: changed
    )
    with pytest.raises(ConfigError, match="mask_decoder of a store"):
        read_decoder(store)


def test_methods_that_fit(make_prompts: Any) -> None:
    """labels trains by masks alone; measured by the same numbers."""
    (record,) = run(make_prompts(methods=["labels"]))
    assert record["teacher_images"] == 0
    assert 0 <= record["score"]["value"] <= 1  # type: ignore[index]


@pytest.mark.slow
def test_the_encoder_is_exported(make_prompts: Any) -> None:
    """ONNX gives the same embedding; int8 is measured by the masks that the decoder makes of it."""
    config = make_prompts(methods=["labels"])
    run(config)
    folder = Path(config.out) / "labels" / "seed0"
    found: Any = export(
        ExportConfig(
            model=str(folder),
            formats=["onnx", "int8"],
            calibration=CalibrationConfig(images=12, held_out=8, method="minmax"),
            latency=LatencyConfig(rounds=1, batches=[1], threads=[1]),
            workers=0,
        )
    )
    kept = json.loads((folder / "evaluation.json").read_text())["miou"]
    assert found["measure"]["name"] == "miou"
    assert found["formats"]["onnx"]["score"] == pytest.approx(kept, rel=1e-2)
    int8 = found["formats"]["int8"]
    assert int8["lost_points"] == pytest.approx(100 * (kept - int8["score"]), abs=1)


def test_numbers_by_hand() -> None:
    """Mean over masks; an object that no image shows has none."""
    task = object.__new__(Promptable)
    task.options = PromptableConfig(objects=["a", "b", "c"])
    kept = torch.tensor([[0.5, 1.0, math.nan], [math.nan, 0.3, math.nan]])
    found = task.numbers(kept)
    assert found["miou"] == pytest.approx(0.6)
    assert found["per_object_iou"] == {
        "a": pytest.approx(0.5),
        "b": pytest.approx(0.65),
        "c": None,
    }
    np.testing.assert_allclose(task.errors(kept), [0.25, 0.7], rtol=1e-6)


def test_everything_leaves_out_points_in_sure_masks() -> None:
    """A decoder that knows two halves: the sure one gets no point of the fine grid, and each is found once."""

    class Halves(torch.nn.Module):
        def forward(self, embedding: Any, points: Any) -> Any:
            left = points[..., 0] < 0
            logits = torch.where(left[..., None, None], 1.0, -1.0).repeat(1, 1, 8, 8)
            logits[..., 4:] *= -1
            return DecodedMasks(logits, torch.where(left, 0.9, 0.8), points)

    decoder: Any = Halves()
    found = everything(decoder, torch.zeros(4, 2, 2), coarse=2, fine=4, sure=0.85, least=0.5)
    assert found.num_prompts == 2 * 2 + 4 * 4 // 2
    assert found.iou.tolist() == pytest.approx([0.9, 0.8])
    assert found.masks[0, :, :4].all()
    assert not found.masks[0, :, 4:].any()
    assert (found.masks[1] == ~found.masks[0]).all()
    assert (found.points[:, 0] < 0).tolist() == [True, False]
    assert len(everything(decoder, torch.zeros(4, 2, 2), coarse=2, fine=0, least=0.85).masks) == 1
