"""Files of point clouds, the source that lists them, and the input of an encoder."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore.errors import ConfigError, DecodeError, SourceError
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig
from featstore.format.manifest_records import PointRecord
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from featstore.sources.points import decode_points, prepare_points
from tests.points import cloud, ply, write_clouds

POINTS = cloud("ball", 3)


def npy(array: Any, **options: Any) -> bytes:
    np.save(file := io.BytesIO(), array, **options)
    return file.getvalue()


def test_formats() -> None:
    """The same numbers from .npy of several types, KITTI's and nuScenes' .bin, and both kinds of .ply."""
    four, five = (np.pad(POINTS, ((0, 0), (0, more)), constant_values=7) for more in (1, 2))
    assert (decode_points(npy(POINTS), "a/b.npy") == POINTS).all()
    assert (decode_points(npy(np.asfortranarray(POINTS.astype(">f8"))), "b.NPY") == POINTS).all()
    assert (decode_points(four.astype("<f4").tobytes(), "000000.bin") == four).all()
    assert (decode_points(five.astype("<f4").tobytes(), "x.pcd.bin") == five).all()
    for binary in (True, False):
        found = decode_points(ply(POINTS, binary=binary), "a.ply")
        assert (found[:, :3] == POINTS).all()
        assert found[:, 3].tolist() == [1] * len(POINTS)
        assert found[:, 4].tolist() == list(range(len(POINTS)))
        assert found.dtype == np.float32


def bad(row: int, value: float) -> Any:
    changed = POINTS.copy()
    changed[row, 1] = value
    return changed


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty file": ("a.npy", b"", "0 bytes"),
    "no points, npy": ("a.npy", npy(POINTS[:0]), "no points"),
    "no points, ply": ("a.ply", ply(POINTS[:0]), "no points"),
    "NaN": ("a.npy", npy(bad(4, np.nan)), "number 4"),
    "infinite": ("a.bin", np.full((3, 4), np.inf, "<f4").tobytes(), "3 of 3"),
    "too large for float32": ("a.npy", npy(np.full((3, 3), 1e300)), "3 of 3"),
    "NaN in ascii": ("a.ply", ply(bad(0, np.nan), binary=False), "number 0"),
    "truncated npy": ("a.npy", npy(POINTS)[:-5], "truncated"),
    "truncated header": ("a.npy", npy(POINTS)[:20], "cannot be decoded"),
    "truncated bin": ("a.bin", bytes(50), "50 bytes"),
    "truncated ply": ("a.ply", ply(POINTS)[:-30], "truncated"),
    "truncated ascii": ("a.ply", ply(POINTS, binary=False)[:-90], "truncated"),
    "no header": ("a.ply", b"ply\nformat ascii 1.0\n", "end_header"),
    "big-endian": ("a.ply", ply(POINTS).replace(b"little", b"big"), "binary_big_endian"),
    "without z": ("a.ply", ply(POINTS).replace(b"double z", b"double w"), "flag x y w"),
    "one axis": ("a.npy", npy(np.zeros(9)), r"\(9,\)"),
    "two columns": ("a.npy", npy(np.zeros((9, 2))), r"\(9, 2\)"),
    "words": ("a.npy", npy(np.array([["a", "b", "c"]])), "<U1"),
    "pickled": ("a.npy", npy(np.array([[{}] * 3]), allow_pickle=True), "object"),
    "declares more than there is": (
        "a.npy",
        npy(POINTS).replace(b"(15, 3)", b"(1500000000000, 3)"),
        "1500000000000",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(case: str) -> None:
    """An error of the file that names what is wrong, for every format."""
    name, data, shown = BAD[case]
    with pytest.raises(DecodeError, match=shown):
        decode_points(data, name)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80), st.sampled_from([".npy", ".bin", ".ply"]), st.integers(0, 300))
def test_hostile_bytes(noise: bytes, suffix: str, cut: int) -> None:
    """Whatever a file holds, it is decoded to finite numbers, or refused as a file."""
    good = {".npy": npy(POINTS), ".ply": ply(POINTS), ".bin": POINTS.tobytes()}[suffix]
    for data in (noise, good[:cut] + noise, good[:cut] + noise + good[cut + len(noise) :]):
        try:
            found = decode_points(data, "a" + suffix)
        except DecodeError:
            continue
        assert np.isfinite(found).all()
        assert found.shape[1] >= 3


def record(**values: Any) -> PointRecord:
    return PointRecord(**{"columns": 3, "most_points": 6, "grid": (2, 2), **values})


def test_prepared_by_hand() -> None:
    """Scaled by the longest side, or by bounds with points outside left out; sorted; NaN behind the last point."""
    points = np.array([[4, 1, 0, 9], [0, 3, 1, 8]], np.float32)
    found = prepare_points(points, record(columns=4))
    assert found[:2].tolist() == [[-1, 0.5, 0.25, 8], [1, -0.5, -0.25, 9]]
    assert np.isnan(found[2:]).all()
    assert found.shape == (6, 4)
    bounded = prepare_points(points, record(bounds=(0, 0, -2, 4, 4, 2)))
    assert bounded[0].tolist() == [-1, 0.5, 0.5]
    assert np.isnan(bounded[1:]).all()  # x = 4 lies outside of 0 <= x < 4
    alone = prepare_points(points[:1], record())
    assert alone[0].tolist() == [0, 0, 0]
    for values, shown in (
        ({"columns": 5}, "4 numbers"),
        ({"bounds": (5, 0, 0, 6, 1, 1)}, "no point"),
    ):
        with pytest.raises(DecodeError, match=shown):
            prepare_points(points, record(**values))
    with pytest.raises(ValueError, match="bounds"):
        record(bounds=(1, 0, 0, 1, 1, 1))


@settings(deadline=None)
@given(st.permutations(range(15)), st.integers(1, 20))
def test_the_order_of_points_does_not_matter(order: list[int], most: int) -> None:
    """Bit for bit, also where a cloud is thinned; of a thinned cloud, as many points as there may be."""
    points = POINTS[:15]
    found = prepare_points(points, record(most_points=most))
    np.testing.assert_array_equal(prepare_points(points[order], record(most_points=most)), found)
    assert (~np.isnan(found[:, 0])).sum() == min(most, 15)


def test_a_folder_of_clouds(tmp_path: Path) -> None:
    """Ids are paths, labels the parent folders, the content the bytes of the file; other files are named in a note."""
    write_clouds(tmp_path, 2)
    (tmp_path / "train" / "ball" / "scan.PLY").write_bytes(ply(POINTS))
    (tmp_path / "picture.jpg").write_bytes(b"1")
    source = open_source(SourceConfig(kind="points", path=str(tmp_path)))
    assert source.kind == "points"
    shapes = ("ball", "line", "plate")
    expected = [f"test/{shape}/000.npy" for shape in shapes]
    expected += [f"train/{shape}/001.npy" for shape in shapes]
    assert list(source.sample_ids) == sorted([*expected, "train/ball/scan.PLY"])
    assert source.class_names == ("ball", "line", "plate")
    row = list(source.sample_ids).index("train/line/001.npy")
    assert source.read(row) == (tmp_path / "train/line/001.npy").read_bytes()
    assert any("picture.jpg" in note for note in source.notes)
    assert pickle.loads(pickle.dumps(source)).read(row) == source.read(row)
    none = SourceConfig(kind="points", path=str(tmp_path), labels_from="none")
    assert open_source(none).labels is None


def test_folders_without_clouds(tmp_path: Path) -> None:
    """Named with what was expected; a folder of clouds that is opened as images names the kind points."""
    with pytest.raises(SourceError, match=r"\.bin \.npy \.ply"):
        open_source(SourceConfig(kind="points", path=str(tmp_path)))
    write_clouds(tmp_path, 1)
    with pytest.raises(SourceError, match=r"--source\.kind points"):
        open_source(SourceConfig(kind="folder", path=str(tmp_path)))
    with pytest.raises(SourceError, match="absent"):
        open_source(SourceConfig(kind="points", path=str(tmp_path / "absent")))


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"teacher": TeacherConfig(library="timm", name="x")}, "python"),
        ({"store": StoreConfig(pictures=32)}, "--store.pictures"),
        ({"store": StoreConfig(dtype="int8")}, "int8"),
        ({"teacher": TeacherConfig(library="python", name="x:y", max_tokens=3)}, "max_tokens"),
    ],
)
def test_settings_that_are_not_for_clouds(settings: dict[str, Any], shown: str) -> None:
    """Refused before anything is read."""
    python = {"teacher": TeacherConfig(library="python", name="x:y")}
    with pytest.raises(ConfigError, match=shown):
        ExtractConfig(source=SourceConfig(kind="points", path="x"), **(python | settings))
