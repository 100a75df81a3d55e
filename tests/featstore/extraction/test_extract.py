"""Phase one from images to store: bad images, refusals on resume, and stored features equal to the live teacher's."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from featstore import FeatureStore
from featstore.errors import ManifestMismatch, MissingSamples, TooManyInvalid
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig, ViewsConfig
from featstore.extraction.images import ImageInputs, InputBatch
from featstore.extraction.new_manifest import forward_dtype, resolve_precision
from featstore.extraction.shards import (
    ExtractionSummary,
    batches_of,
    refuse_non_finite,
    run_teacher,
)
from featstore.extraction.teachers import Teacher, build_teacher
from featstore.format.ids import content_sha256
from featstore.format.ledger import InvalidRow
from featstore.format.manifest_records import PreprocessingRecord
from featstore.format.views import ViewSet
from featstore.sources import Source, open_source
from featstore.sources.config import SourceConfig
from tests.conftest import TINY_ARGS
from tests.featstore.formula import FormulaTeacher, make_config, run
from tests.featstore.stores import RULE, snapshot
from tests.images import picture, png

BAD = {
    "cat/cut.jpg": "cannot be decoded: OSError",
    "cat/empty.png": "empty file (0 bytes)",
    "dog/text.jpg": "not an image (28 bytes",
    "dog/huge.png": "too many pixels: ",
    "dog/gone.png": "cannot be read: No such file or directory",
}
"""Unusable images, and how the reason begins."""


def put_bad_images(folder: Path) -> None:
    """Write the files that BAD speaks of."""
    whole = picture(3, "JPEG")
    (folder / "cat/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cat/empty.png").write_bytes(b"")
    (folder / "dog/text.jpg").write_bytes(b"<html>404 not found</html>\r\n")
    (folder / "dog/huge.png").write_bytes(png(50_000, 50_000, depth=8, colour=2, rows=b""))
    (folder / "dog/gone.png").symlink_to("nowhere.png")


@pytest.fixture
def mixed(image_folder: Path, tmp_path: Path) -> Path:
    """The 26 good pictures with bad ones among them, one picture twice, and one file name in two folders."""
    folder = shutil.copytree(image_folder, tmp_path / "pictures")
    put_bad_images(folder)
    shutil.copy(folder / "cat/02.png", folder / "cat/02_copy.png")
    (folder / "cat/same.png").write_bytes(picture(1000))
    (folder / "dog/same.png").write_bytes(picture(1001))
    return folder


def test_bad_images_become_invalid_rows(mixed: Path, tmp_path: Path) -> None:
    """A bad image never ends a run and never vanishes: an invalid row, a reason in the ledger, a line in the end."""
    summary = run(make_config(mixed, tmp_path / "s"))
    assert summary.rows == summary.written == 26 + 3 + len(BAD)
    assert {item.sample_id for item in summary.invalid} == set(BAD)
    store = FeatureStore.open(tmp_path / "s")
    for item in store.invalid_rows():
        assert item.reason.startswith(BAD[item.sample_id])
        assert store.sample_ids[item.row] == item.sample_id
        assert not store.valid[item.row]
        with pytest.raises(MissingSamples, match=item.sample_id):
            store.gather("cls", [item.row])
    assert store.valid.sum() == 29
    # The hash is that of the file, also of a bad one; zeros where there was nothing to read.
    for row, sample_id in enumerate(store.sample_ids):
        path = mixed / sample_id
        expected = content_sha256(path.read_bytes()) if path.exists() else bytes(32)
        assert store.content_sha256[row].tobytes() == expected
    assert store.labels.tolist() == [
        ("cat", "dog").index(i.split("/")[0]) for i in store.sample_ids
    ]


def test_equal_images_and_equal_names_are_rows_of_their_own(mixed: Path, tmp_path: Path) -> None:
    """The same picture twice: two rows with one hash and equal canonical features. One name in two folders: two ids."""
    run(make_config(mixed, tmp_path / "s"))
    store = FeatureStore.open(tmp_path / "s")
    first, copy, cat, dog = store.rows_of(
        ["cat/02.png", "cat/02_copy.png", "cat/same.png", "dog/same.png"]
    )
    assert (store.content_sha256[first] == store.content_sha256[copy]).all()
    assert (store.content_sha256[cat] != store.content_sha256[dog]).any()
    features = store.gather("cls", [first, copy])
    np.testing.assert_array_equal(features[0, 0], features[1, 0])
    # Seeded crops depend on the id: they differ.
    assert (features[0, 1] != features[1, 1]).any()


def test_good_rows_do_not_feel_bad_neighbours(
    mixed: Path, image_folder: Path, tmp_path: Path
) -> None:
    """Each good row's features are, bit by bit, those of a store without any bad image."""
    run(make_config(mixed, tmp_path / "mixed"))
    run(make_config(image_folder, tmp_path / "clean"))
    mixed_store, clean = (FeatureStore.open(tmp_path / name) for name in ("mixed", "clean"))
    rows = mixed_store.rows_of(clean.sample_ids)
    for name in ("cls", "grid2"):
        np.testing.assert_array_equal(
            mixed_store.gather(name, rows), clean.gather(name, range(len(rows)))
        )


def test_loader_processes_change_nothing(mixed: Path, tmp_path: Path) -> None:
    """Decoding in line or in two processes gives the same store."""
    run(make_config(mixed, tmp_path / "inline"))
    run(make_config(mixed, tmp_path / "workers", workers=2))
    assert snapshot(tmp_path / "inline") == snapshot(tmp_path / "workers")


def test_a_store_of_nothing_but_bad_images(tmp_path: Path) -> None:
    """The run finishes, lists them all, and the check says that the share is too large."""
    (tmp_path / "pictures/cat").mkdir(parents=True)
    (tmp_path / "pictures/dog").mkdir()
    put_bad_images(tmp_path / "pictures")
    summary = run(make_config(tmp_path / "pictures", tmp_path / "s"))
    assert summary.invalid_share == 1.0
    with pytest.raises(TooManyInvalid, match=r"\b5\b.*\b5\b.*100.0%.*1.0%"):
        summary.check(0.01)
    summary.check(1.0)


@pytest.mark.parametrize(("bad", "rows"), [(1, 3), (2, 3), (1, 7), (1, 2000), (5, 9)])
def test_the_advice_of_too_many_invalid_works(tmp_path: Path, bad: int, rows: int) -> None:
    """The share that the message tells to pass is accepted: it is rounded up, never down."""
    invalid = [InvalidRow(row=row, sample_id=f"{row}", reason="empty") for row in range(bad)]
    summary = ExtractionSummary(
        store=tmp_path, rows=rows, written=rows, invalid=invalid, seconds=1.0
    )
    with pytest.raises(TooManyInvalid) as caught:
        summary.check(0.0)
    summary.check(float(str(caught.value).split("--max_invalid_share ")[1]))


def spoil(value: float, which: int) -> Any:
    """Put a value into one number of the first row in call number ``which`` of the teacher."""
    calls = [0]

    def change(images: Tensor, cls: Tensor) -> None:
        if calls[0] == which:
            cls[0, 3] = value
        calls[0] += 1

    return change


@pytest.mark.parametrize(
    ("dtype", "value", "bad"),
    [
        ("float32", float("nan"), True),
        ("float16", float("nan"), True),
        ("float32", float("-inf"), True),
        ("float16", 70_000.0, True),
        ("float32", 70_000.0, False),
        ("float16", 65_000.0, False),
    ],
)
def test_features_that_are_no_numbers(
    image_folder: Path, tmp_path: Path, dtype: Any, value: float, bad: bool
) -> None:
    """NaN, infinity and what float16 cannot hold make that row invalid, with the field and a way out; others stay."""
    store_config = StoreConfig(path=str(tmp_path / "s"), fields=["cls"], dtype=dtype, shard_rows=4)
    config = make_config(image_folder, tmp_path / "s", store=store_config)
    # Call 4 is the canonical view of the third batch: row 4.
    summary = run(config, FormulaTeacher(dtype, spoil(value, 4)))
    assert [item.row for item in summary.invalid] == ([4] if bad else [])
    store = FeatureStore.open(tmp_path / "s")
    if not bad:
        assert store.gather("cls", [4])[0, 0, 3] == np.dtype(dtype).type(value)
        return
    assert store.invalid_rows()[0].reason.startswith(
        f'the teacher\'s field "cls" is not finite as {dtype}; if it overflowed, use --store.dtype float32'
    )
    assert np.isfinite(store.gather("cls", np.flatnonzero(store.valid))).all()
    # A stock reader that ignores `valid` meets zeros, not NaN.
    raw = np.fromfile(tmp_path / "s/fields/cls/c/1/0/0", dtype=dtype)[: 2 * 6]
    assert not raw.any()


def test_the_first_reason_counts() -> None:
    """An image that could not be read stays so, whatever the teacher makes of zeros."""
    features = {"a": torch.tensor([[1.0], [torch.nan], [torch.nan]]), "b": torch.full((3, 1), 1.0)}
    features["b"][0, 0] = torch.inf
    reasons = refuse_non_finite(features, [None, "empty", None])
    assert reasons[1] == "empty"
    assert 'field "b"' in str(reasons[0])
    assert 'field "a"' in str(reasons[2])


def test_batches_never_cross_a_shard() -> None:
    """Cuts start anew in each shard, so a batch is the same whoever computes it."""
    assert batches_of(range(8, 16), 3) == [range(8, 11), range(11, 14), range(14, 16)]
    assert batches_of(range(8, 10), 64) == [range(8, 10)]


def test_precision_auto_keeps_the_stores(image_folder: Path, tmp_path: Path) -> None:
    """A store begun in another precision goes on in it when the recipe says auto; a stated one is taken as it is."""
    store = tmp_path / "s"
    teacher = FormulaTeacher("float16")
    teacher.record = teacher.record.model_copy(update={"precision": "fp16"})
    run(make_config(image_folder, store), teacher)
    auto = make_config(image_folder, store, teacher=TeacherConfig(name="x", precision="auto"))
    stated = make_config(image_folder, store, teacher=TeacherConfig(name="x", precision="fp32"))
    assert resolve_precision(auto, torch.device("cpu")) == "fp16"
    assert resolve_precision(stated, torch.device("cpu")) == "fp32"


# --- with a real, tiny ViT ---------------------------------------------------------------------------------------


def vit_config(images: Path, path: Path, teacher_file: Path, **changes: Any) -> ExtractConfig:
    """Settings of a run with the tiny ViT; ``teacher``, ``views`` and ``store`` take dicts of changes."""
    teacher = {
        "name": "vit_tiny_patch16_224",
        "weights": str(teacher_file),
        "image_size": 32,
        "model_args": TINY_ARGS,
        "precision": "fp32",
        **changes.pop("teacher", {}),
    }
    store = {"fields": ["cls", "grid2"], "dtype": "float32", "shard_rows": 8} | changes.pop(
        "store", {}
    )
    return make_config(
        images,
        path,
        teacher=TeacherConfig(**teacher),
        views=ViewsConfig(**{"seeded": 1, **changes.pop("views", {})}),
        store=StoreConfig(path=str(path), **store),
        **{"batch_size": 4, **changes},
    )


def live(config: ExtractConfig) -> tuple[Teacher, Source]:
    """The teacher and the source of a config."""
    teacher = build_teacher(
        config.teacher,
        fields=config.store.fields,
        dtype=forward_dtype(config),
        precision=resolve_precision(config, torch.device("cpu")),
        device=torch.device("cpu"),
    )
    return teacher, open_source(config.source)


def run_real(config: ExtractConfig) -> ExtractionSummary:
    """Extract with the real teacher of a config, without planning."""
    return run(config, live(config)[0])  # type: ignore[arg-type]


def live_features(
    config: ExtractConfig, store: FeatureStore, batches: list[range]
) -> dict[str, Tensor]:
    """Decode, cut and run the teacher again, in the given batches; as the teacher gives it, before rounding."""
    teacher, source = live(config)
    assert isinstance(teacher.preprocessing, PreprocessingRecord)
    dataset = ImageInputs(source, store.manifest.views, teacher.preprocessing)
    parts: dict[str, list[Tensor]] = {name: [] for name in store.manifest.fields}
    for rows in batches:
        images = dataset.__getitems__(list(rows)).inputs
        views = [teacher.features(images[:, v]) for v in range(images.shape[1])]
        for name in parts:
            parts[name].append(torch.stack([view[name] for view in views], dim=1))
    return {name: torch.cat(values) for name, values in parts.items()}


BATCH_TOLERANCE = 2e-6
"""Another grouping changes the order of sums in fp32 (epsilon 1.2e-7); outputs are of order 1 after the norm."""


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cached_equals_live(
    image_folder: Path, teacher_file: Path, tmp_path: Path, dtype: Any, precision: Any
) -> None:
    """Stored features are those of the live teacher on the same views and batches.

    Bit by bit: float32 as they are, float16 rounded once. In other batches within BATCH_TOLERANCE, plus half a unit
    in the last place of float16 where that is stored (2**-11 of the value).
    """
    config = vit_config(
        image_folder,
        tmp_path / "s",
        teacher_file,
        store={"dtype": dtype},
        teacher={"precision": precision},
    )
    run_real(config)
    store = FeatureStore.open(tmp_path / "s")
    assert store.manifest.teachers["teacher"].precision == precision
    rows = range(store.num_rows)
    shards = [store.manifest.shard_range(shard) for shard in store.shards]
    same = [batch for shard in shards for batch in batches_of(shard, 4)]
    for name, values in live_features(config, store, same).items():
        expected = values.to(getattr(torch, dtype)).numpy()
        np.testing.assert_array_equal(store.gather(name, rows), expected, strict=True)
    if precision != "fp32":
        return
    for name, values in live_features(config, store, [rows[:7], rows[7:25], rows[25:]]).items():
        rounding = 2.0**-11 if dtype == "float16" else 0.0
        np.testing.assert_allclose(
            store.gather(name, rows).astype(np.float32),
            values.numpy(),
            rtol=rounding,
            atol=BATCH_TOLERANCE,
        )


def test_a_batch_is_decoded_as_the_contract_says(image_folder: Path) -> None:
    """What the teacher gets is (B, V, 3, H, W) uint8, cut by featstore.format.views from the decoded picture."""
    source = open_source(SourceConfig(kind="folder", path=str(image_folder)))
    rule = PreprocessingRecord.model_validate({**RULE.model_dump(), "size": (8, 6)})
    batch: InputBatch = ImageInputs(source, ViewSet(), rule).__getitems__([3, 0, 3])
    assert batch.inputs.shape == (3, 1, 3, 8, 6)
    assert batch.inputs.dtype == torch.uint8
    assert torch.equal(batch.inputs[0], batch.inputs[2])
    assert batch.reasons == [None] * 3


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "weights": (
        {"teacher": {"weights": "OTHER"}},
        "teacher.weights_sha256: the store has '[0-9a-f]{64}'",
    ),
    "crop_pct": (
        {"teacher": {"crop_pct": 1.0}},
        "preprocessing.crop_pct: the store has 0.9, now asked for 1.0",
    ),
    "mean": (
        {"teacher": {"mean": [0, 0, 0]}},
        r"preprocessing.mean: the store has \[0.5, 0.5, 0.5\], now asked for \[0",
    ),
    "precision": (
        {"teacher": {"precision": "bf16"}},
        "teacher.precision: the store has 'fp32', now asked for 'bf16'",
    ),
    "seeded": ({"views": {"seeded": 2}}, r"views.views: the store has \["),
    "seed": ({"views": {"seed": 5}}, "views.seed: the store has 0, now asked for 5"),
    "fields": (
        {"store": {"fields": ["cls"]}},
        "fields.grid2: the store has {.*}, now asked for None",
    ),
    "dtype": (
        {"store": {"dtype": "float16"}},
        "fields.cls.dtype: the store has 'float32', now asked for 'float16'",
    ),
    "batch": ({"batch_size": 2}, "work.batch_size: the store has 4, now asked for 2"),
    "shards": ({"store": {"shard_rows": 4}}, "work.shard_rows: the store has 8, now asked for 4"),
    "source": ({"source": "include"}, "source.num_samples: the store has 26, now asked for 13"),
}


@pytest.fixture(scope="module")
def resumable(
    image_folder: Path, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store of the tiny ViT."""
    path = tmp_path_factory.mktemp("resumable") / "s"
    run_real(vit_config(image_folder, path, teacher_file))
    return path


@pytest.mark.parametrize("name", CHANGES)
def test_other_settings_are_refused(
    image_folder: Path, teacher_file: Path, resumable: Path, tmp_path: Path, name: str
) -> None:
    """Going on with anything else than the store was made with names both values and changes nothing."""
    changes, message = CHANGES[name]
    changes = dict(changes)
    if name == "weights":
        state = load_file(teacher_file)
        state["norm.bias"][0] += 1e-3
        save_file(state, tmp_path / "other.safetensors")
        changes = {"teacher": {"weights": str(tmp_path / "other.safetensors")}}
    if name == "source":
        changes = {"source": SourceConfig(kind="folder", path=str(image_folder), include=["cat/*"])}
    before = snapshot(resumable)
    with pytest.raises(ManifestMismatch, match=message):
        run_real(vit_config(image_folder, resumable, teacher_file, **changes))
    assert snapshot(resumable) == before


def test_other_places_are_the_same_contract(
    image_folder: Path, teacher_file: Path, resumable: Path, tmp_path: Path
) -> None:
    """Weights in another file, images in another folder, another licence, other workers: the same store."""
    moved = shutil.copytree(image_folder, tmp_path / "moved")
    copied = shutil.copy(teacher_file, tmp_path / "renamed.safetensors")
    teacher = {"weights": str(copied), "licence": "mit"}
    config = vit_config(moved, resumable, teacher_file, teacher=teacher)
    assert run_real(dataclasses.replace(config, workers=1)).written == 0


def test_a_renamed_image_is_another_source(
    image_folder: Path, teacher_file: Path, resumable: Path, tmp_path: Path
) -> None:
    """Rows are bound to ids: a source with the same number of images but one other name is refused."""
    moved = shutil.copytree(image_folder, tmp_path / "moved")
    (moved / "cat/02.png").rename(moved / "cat/02b.png")
    with pytest.raises(ManifestMismatch, match=r"source.ids_sha256"):
        run_real(vit_config(moved, resumable, teacher_file))


def test_run_teacher_gives_every_view(
    image_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    """(B, V, *shape) in the stored dtype, view by view."""
    teacher, _ = live(vit_config(image_folder, tmp_path, teacher_file, store={"dtype": "float16"}))
    images = torch.randint(0, 256, (3, 2, 3, 32, 32), dtype=torch.uint8)
    out = run_teacher(teacher, images)
    assert {name: (value.shape, value.dtype) for name, value in out.items()} == {
        "cls": ((3, 2, 16), torch.float16),
        "grid2": ((3, 2, 2, 2, 16), torch.float16),
    }
    torch.testing.assert_close(
        out["cls"][:, 1], teacher.features(images[:, 1])["cls"].half(), rtol=0, atol=0
    )
