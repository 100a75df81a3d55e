"""Stores of point clouds: ragged records of the occupied cells."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featstore
from distill.student import pillars
from featstore.errors import FeatstoreError, ManifestMismatch, TeacherError, TooManyInvalid
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig
from featstore.extraction.run import run
from featstore.format.manifest_records import PointRecord
from featstore.sources.config import SourceConfig
from featstore.sources.points import prepare_points
from tests import points
from tests.images import picture

KEPT: list[pillars.PillarTeacher] = []


def kept_teacher(**model_args: Any) -> pillars.PillarTeacher:
    """The same teacher at every call."""
    torch.manual_seed(0)
    made = pillars.teacher(**model_args)
    KEPT.append(made)
    return made


def config(clouds: Path, path: Path, **changes: Any) -> ExtractConfig:
    values: dict[str, Any] = {
        "source": SourceConfig(kind="points", path=str(clouds)),
        "teacher": TeacherConfig(
            library="python",
            name=f"{__name__}:kept_teacher",
            model_args={**points.MODEL, "num_classes": 3},
            precision="fp32",
        ),
        "store": StoreConfig(
            path=str(path), fields=points.FIELDS, shard_rows=10, shard_s=0, dtype="float32"
        ),
        "batch_size": 4,
        "workers": 0,
        **changes,
    }
    return ExtractConfig(**values)


def test_stored_is_what_the_teacher_gives(tmp_path: Path) -> None:
    """A cloud's cells, counts and features are those of the teacher on this cloud alone; counts sum to its points."""
    clouds = points.write_clouds(tmp_path / "clouds")
    run(config(clouds, tmp_path / "store"), progress=False)
    store = featstore.open(tmp_path / "store")
    record = store.manifest.teachers["teacher"].preprocessing
    assert isinstance(record, PointRecord)
    assert store.num_rows == 24
    teacher = KEPT[-1].eval()
    for row in (0, 5, 13, 23):
        shape, name = store.sample_ids[row].split("/")[1:]
        given = prepare_points(points.cloud(shape, int(name[:3])), record)
        with torch.no_grad():
            live = teacher(torch.from_numpy(given)[None])
        for field in ("voxel_features", "voxel_coords", "voxel_counts"):
            found = store.gather_ragged(field, [row]).values
            np.testing.assert_allclose(found, live[field][0].numpy(), rtol=1e-4, atol=1e-5)
        assert (
            store.gather_ragged("voxel_counts", [row]).values.sum()
            == (~np.isnan(given[:, 0])).sum()
        )
        coords = store.gather_ragged("voxel_coords", [row]).values
        assert (coords < [1, 5, 4]).all()
    assert {store.manifest.fields[name].dtype for name in ("voxel_coords", "voxel_counts")} == {
        "int16",
        "int32",
    }


def test_clouds_that_cannot_be_used(tmp_path: Path) -> None:
    """Rows without items, with a reason each; too many end the run with the same names."""
    clouds = points.write_clouds(tmp_path / "clouds")
    folder = clouds / "train" / "ball"
    np.save(folder / "001.npy", np.full((4, 3), np.nan))
    np.save(folder / "002.npy", np.zeros((0, 3)))
    (folder / "003.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(TooManyInvalid, match=r"train/ball/001\.npy"):
        run(config(clouds, tmp_path / "store"), progress=False)
    store = featstore.open(tmp_path / "store")
    reasons = {item.sample_id: item.reason for item in store.invalid_rows()}
    assert sorted(reasons) == [f"train/ball/00{number}.npy" for number in (1, 2, 3)]
    assert "NaN" in reasons["train/ball/001.npy"]
    assert "no points" in reasons["train/ball/002.npy"]
    with pytest.raises(FeatstoreError, match=r"001\.npy"):
        store.gather_ragged("voxel_counts", store.rows_of(["train/ball/001.npy"]))
    good = store.rows_of(["train/ball/005.npy"])
    assert len(store.gather_ragged("voxel_counts", good).values)


def test_resumed_bytes(tmp_path: Path) -> None:
    """A shard that is not committed is made again with the same bytes; another grid, or other clouds, are refused."""
    clouds = points.write_clouds(tmp_path / "clouds")
    path = tmp_path / "store"
    run(config(clouds, path), progress=False)
    expected = featstore.open(path).gather_ragged("voxel_features", range(24))
    fingerprint = featstore.open(path).fingerprint
    for name in ("00000001.json", "complete.json"):
        next(path.rglob(name)).unlink()
    run(config(clouds, path), progress=False)
    again = featstore.open(path)
    assert again.fingerprint == fingerprint
    found = again.gather_ragged("voxel_features", range(24))
    assert found.values.tobytes() == expected.values.tobytes()
    assert found.offsets.tolist() == expected.offsets.tolist()
    model_args = {**points.MODEL, "num_classes": 3, "grid": [4, 4]}
    teacher = dataclasses.replace(config(clouds, path).teacher, model_args=model_args)
    with pytest.raises(ManifestMismatch, match="grid"):
        run(config(clouds, path, teacher=teacher), progress=False)
    (clouds / "train" / "ball" / "001.npy").rename(clouds / "train" / "ball" / "0015.npy")
    with pytest.raises(ManifestMismatch, match="ids_sha256"):
        run(config(clouds, path), progress=False)


def image_teacher() -> torch.nn.Module:
    """A teacher of images."""
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.preprocessing = {"size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}  # type: ignore[assignment]
    return model


def wrong_teacher() -> torch.nn.Module:
    """A teacher whose attribute points lacks the grid."""
    model = torch.nn.Identity()
    model.points = {"columns": 3, "most_points": 4}  # type: ignore[assignment]
    return model


def test_teachers_of_the_other_kind(tmp_path: Path) -> None:
    """A teacher of images is refused for clouds, one of clouds for images, and one whose points lack a part."""
    clouds = points.write_clouds(tmp_path / "clouds", 2)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture())

    def named(function: str) -> TeacherConfig:
        return TeacherConfig(library="python", name=f"{__name__}:{function}", precision="fp32")

    pooled = StoreConfig(path=str(tmp_path / "store"), fields=["pooled"], shard_s=0)
    with pytest.raises(TeacherError, match="image_teacher"):
        run(
            config(clouds, tmp_path / "s", teacher=named("image_teacher"), store=pooled),
            progress=False,
        )
    source = SourceConfig(kind="folder", path=str(tmp_path / "images"))
    with pytest.raises(TeacherError, match="kept_teacher"):
        run(config(clouds, tmp_path / "s", source=source), progress=False)
    with pytest.raises(TeacherError, match="grid"):
        run(
            config(clouds, tmp_path / "s", teacher=named("wrong_teacher"), store=pooled),
            progress=False,
        )
