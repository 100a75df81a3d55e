"""Sources: ids, labels and bytes of every kind, on real files, and the errors of each."""

import builtins
import gzip
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore.errors import SourceError
from featstore.sources import NO_LABEL, Source, listed_files, open_source
from featstore.sources.base import IMAGE_SUFFIXES
from featstore.sources.config import SourceConfig
from featstore.sources.decode import decode_image
from featstore.sources.tars import TarSource
from featstore.sources.tarstream import TarReader
from tests.images import gradient, picture


def open_kind(kind: Any, path: Path | str, **options: Any) -> Source:
    return open_source(SourceConfig(kind=kind, path=str(path), **options))


def labels_of(source: Source) -> list[str | int]:
    """Class of each sample by name, or NO_LABEL."""
    assert source.labels is not None
    return [source.class_names[label] if label != NO_LABEL else NO_LABEL for label in source.labels]


def put(root: Path, *names: str) -> dict[str, bytes]:
    """Write one small picture for each name below a folder."""
    written = {}
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
        written[name] = path.read_bytes()
    return written


def read_in_other_process(source: Source, row: int) -> bytes:
    """Unpickle and read where nothing of this process is left."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(source.read, (row,))


# ---------------------------------------------------------------- folders


def test_folder_lists_by_relative_path(tmp_path: Path) -> None:
    """Ids are sorted relative paths; nested, upper-case, non-ASCII names and doubles all count."""
    names = (
        "b/1.png",
        "a/1.png",
        "a/deep/er/2.JPEG",
        "Z.PNG",
        "a/\u00e4\u65e5\u672c.jpg",
        "a/x y.webp",
    )
    written = put(tmp_path, *names)
    (tmp_path / "a" / "same.png").write_bytes(written["a/1.png"])
    source = open_kind("folder", tmp_path)
    assert list(source.sample_ids) == sorted([*names, "a/same.png"])
    for row, sample_id in enumerate(source.sample_ids):
        assert source.read(row) == (tmp_path / sample_id).read_bytes()
    assert (source.kind, source.uri, len(source)) == ("folder", str(tmp_path), 7)
    assert source.notes == []


def test_folder_order_does_not_depend_on_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are the same in whatever order the operating system lists a folder."""
    put(tmp_path, "b/1.png", "a/1.png", "c.png", "a/0.png")
    expected = list(open_kind("folder", tmp_path).sample_ids)

    class Reversed:
        def __init__(self, path: Path) -> None:
            with real(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self.entries)

        def __exit__(self, *error: object) -> None:
            pass

    real = os.scandir
    monkeypatch.setattr(os, "scandir", Reversed)
    assert list(open_kind("folder", tmp_path).sample_ids) == expected


def test_folder_labels(tmp_path: Path) -> None:
    """The class is the folder an image lies in, or the topmost one; none directly in the root."""
    put(tmp_path, "root.png", "train/cat/1.png", "train/dog/1.png", "val/cat/2.png")
    source = open_kind("folder", tmp_path)
    assert source.class_names == ("cat", "dog")
    assert labels_of(source) == [NO_LABEL, "cat", "dog", "cat"]
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    top = open_kind("folder", tmp_path, labels_from="top")
    assert labels_of(top) == [NO_LABEL, "train", "train", "val"]
    none = open_kind("folder", tmp_path, labels_from="none")
    assert (none.labels, none.class_names) == (None, ())


def test_folder_without_subfolders_has_no_labels(tmp_path: Path) -> None:
    """If no image has a class there are no labels at all."""
    put(tmp_path, "1.png", "2.png")
    source = open_kind("folder", tmp_path)
    assert (source.labels, source.class_names) == (None, ())


def test_folder_skips_what_is_not_an_image_and_says_so(tmp_path: Path) -> None:
    """Hidden files, resource forks and other suffixes are not listed; the latter are counted."""
    put(tmp_path, "a/1.png", ".hidden.png", ".git/1.png", "__MACOSX/a/1.png", "a/._1.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "jpg").write_text("no suffix")
    source = open_kind("folder", tmp_path)
    assert list(source.sample_ids) == ["a/1.png"]
    assert "left out 2 files (1 .txt, 1 without suffix)" in source.notes[0]
    assert "notes.txt" in source.notes[0]
    assert "e.g. jpg" in source.notes[1]


def test_folder_lists_images_with_bad_content(tmp_path: Path) -> None:
    """A name decides; bad content is found when the image is decoded and becomes an invalid row."""
    put(tmp_path, "good.png")
    (tmp_path / "bad.jpg").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    source = open_kind("folder", tmp_path)
    assert list(source.sample_ids) == ["bad.jpg", "empty.png", "good.png"]


def test_folder_links(tmp_path: Path) -> None:
    """Links to files and to nothing are listed, links to folders are named and not followed."""
    put(tmp_path, "data/1.png", "other/2.png")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "other" / "2.png")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "broken.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(tmp_path / "data" / "pipe.png")
    source = open_kind("folder", tmp_path / "data")
    assert list(source.sample_ids) == ["1.png", "broken.png", "link.png"]
    assert source.read(2) == (tmp_path / "other" / "2.png").read_bytes()
    with pytest.raises(FileNotFoundError):
        source.read(1)
    assert "1 links to folders were not followed: loop" in source.notes[1]


def test_folder_vanished_file_is_an_os_error(tmp_path: Path) -> None:
    """A file that goes away after listing is an OSError, which the caller turns into a reason."""
    put(tmp_path, "1.png", "2.png")
    source = open_kind("folder", tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(FileNotFoundError):
        source.read(0)


def test_folder_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"--source\.path"):
        open_kind("folder", tmp_path / "nothing" / "here")


def test_folder_is_a_file(tmp_path: Path) -> None:
    """A file in place of the folder is named; for a tar the right kind is told."""
    put(tmp_path, "1.png")
    with pytest.raises(SourceError):
        open_kind("folder", tmp_path / "1.png")
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(SourceError, match=r"--source\.kind tars"):
        open_kind("folder", tmp_path / "x.tar")


def test_folder_empty(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(SourceError):
        open_kind("folder", tmp_path)


def test_folder_without_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message counts the files, names the suffixes that are there, and what would read HEIC."""
    monkeypatch.setattr("featstore.sources.base.has_heif", lambda: False)
    for name in ("a.txt", "b.txt", "c.heic", "d.tar"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match=r"\b4\b.*\b2\b.*--source\.kind tars"):
        open_kind("folder", tmp_path)
    with pytest.raises(SourceError, match="pillow-heif"):
        open_kind("folder", tmp_path)


def test_folder_with_heic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEIC files are images where the package is there; else they are left out, named, with what to install."""
    put(tmp_path, "a.jfif", "b.HEIC", "c.png")
    monkeypatch.setattr("featstore.sources.base.has_heif", lambda: True)
    assert list(open_kind("folder", tmp_path).sample_ids) == ["a.jfif", "b.HEIC", "c.png"]
    monkeypatch.setattr("featstore.sources.base.has_heif", lambda: False)
    source = open_kind("folder", tmp_path)
    assert list(source.sample_ids) == ["a.jfif", "c.png"]
    assert "b.HEIC" in source.notes[0]
    assert "pillow-heif" in source.notes[1]


def test_folder_unreadable_subfolder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be listed is an error: its images would silently be missing."""
    put(tmp_path, "1.png", "secret/2.png")
    real = os.scandir

    def refuse(path: Path) -> Any:
        # Not by chmod: the tests may run as root, who may list everything.
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError):
        open_kind("folder", tmp_path)


def test_folder_name_that_is_not_utf8(tmp_path: Path) -> None:
    """A name that cannot be an id is refused and shown."""
    put(tmp_path, "1.png")
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/\xff.png")).write_bytes(picture())
    except OSError:
        pytest.skip("this file system only takes UTF-8 names")
    with pytest.raises(SourceError, match="UTF-8"):
        open_kind("folder", tmp_path)


def test_folder_in_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source given by a relative path reads from another process and another working folder."""
    written = put(tmp_path, "data/1.png", "data/2.png")
    monkeypatch.chdir(tmp_path)
    source = open_kind("folder", "data")
    assert source.uri == "data"
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(source))
    assert again.read(1) == written["data/2.png"]
    assert read_in_other_process(source, 1) == written["data/2.png"]


# ---------------------------------------------------------------- include, digits


def test_include_keeps_order_and_classes(tmp_path: Path) -> None:
    """The filter takes ids that match any pattern, in order, and renumbers no class."""
    written = put(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/c/4.png")
    source = open_kind("folder", tmp_path, include=["val/*", "train/b/*"])
    assert list(source.sample_ids) == ["train/b/2.png", "val/a/3.png", "val/c/4.png"]
    assert source.class_names == ("a", "b", "c")
    assert labels_of(source) == ["b", "a", "c"]
    assert [source.read(row) for row in range(3)] == [written[i] for i in source.sample_ids]
    assert pickle.loads(pickle.dumps(source)).read(2) == written["val/c/4.png"]


def test_include_of_unlabelled_samples_has_no_labels(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "root.png")
    assert open_kind("folder", tmp_path, include=["root*"]).labels is None


def test_include_without_match(tmp_path: Path) -> None:
    """The message shows the patterns and some ids that exist."""
    put(tmp_path, "a/1.png", "b/2.png")
    with pytest.raises(SourceError, match=r"\b2\b.*'Train/\*'.*'a/1\.png'"):
        open_kind("folder", tmp_path, include=["Train/*"])


def test_digits() -> None:
    """All digits are there once, split four to one, as PGM files with the known pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = open_source(SourceConfig(kind="digits"))
    assert len(source) == 1797
    assert list(source.sample_ids) == sorted(source.sample_ids)
    order = np.random.default_rng(0).permutation(1797)
    expected = {f"train/{i:04d}" for i in order[:1437]} | {f"test/{i:04d}" for i in order[1437:]}
    assert set(source.sample_ids) == expected
    assert source.labels is not None
    assert source.class_names == tuple("0123456789")
    for row in (0, 359, 360, 1796):
        index = int(source.sample_ids[row].split("/")[1])
        assert source.labels[row] == digits.target[index]
        data = source.read(row)
        assert data.startswith(b"P5\n8 8\n255\n")
        assert len(data) == 11 + 64
        pixels = np.asarray(decode_image(data))[..., 0]
        assert (pixels == np.rint(digits.images[index] * 255 / 16)).all()
    assert (source.kind, source.uri) == ("digits", "scikit-learn:digits")


def test_digits_bytes_are_stable() -> None:
    """The bytes of every digit, in order, are what they were when the first store was made."""
    import hashlib

    source = open_source(SourceConfig(kind="digits"))
    digest = hashlib.sha256(b"".join(source.read(row) for row in range(len(source)))).hexdigest()
    assert digest == DIGITS_SHA256
    train = open_source(SourceConfig(kind="digits", include=["train/*"]))
    assert len(train) == 1437
    assert read_in_other_process(train, 5) == train.read(5)


DIGITS_SHA256 = "0121c361de5d1bb1534286814bf05212d8f4941f8a00b975dd9f70665898988a"


# ---------------------------------------------------------------- tars


def write_tar(path: Path, *members: tuple[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_shard(path: Path, count: int, *, start: int = 0) -> Path:
    """A shard as WebDataset's own writer makes it, each sample with image, class and JSON."""
    webdataset = pytest.importorskip("webdataset", reason="webdataset writes these tars")
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(start, start + count):
            sample = {"png": picture(number), "cls": number % 3, "json": {"number": number}}
            writer.write({"__key__": f"{number:06d}", **sample})
    return path


def test_tars_written_by_webdataset(tmp_path: Path) -> None:
    """Ids are tar and key, order is tars then members, classes come from .cls."""
    write_shard(tmp_path / "b.tar", 3, start=3)
    write_shard(tmp_path / "a.tar", 3)
    (tmp_path / "a.tar.idx").write_text("left by a tool")
    source = open_kind("tars", tmp_path)
    keys = [f"a/{number:06d}" for number in range(3)] + [
        f"b/{number:06d}" for number in range(3, 6)
    ]
    assert list(source.sample_ids) == keys
    assert [source.read(row) for row in range(6)] == [picture(number) for number in range(6)]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (source.class_names, source.notes, source.kind) == ((), [], "tars")


def test_tars_same_samples_as_webdataset(tmp_path: Path) -> None:
    """Keys and bytes are those that stock webdataset gives for the same tar."""
    webdataset = pytest.importorskip("webdataset", reason="compared with webdataset itself")
    path = write_tar(
        tmp_path / "x.tar",
        ("./dir.d/0001.jpg", picture(1)),
        ("./dir.d/0001.cls", b"7"),
        ("a/0002.PNG", picture(2)),
        ("a/0003.x.jpg", picture(3)),
    )
    with path.open("rb") as file:
        members = webdataset.tariterators.tar_file_iterator(file)
        named = ({**member, "__url__": str(path)} for member in members)
        stock = list(webdataset.tariterators.group_by_keys(named))
    source = open_kind("tars", path)
    assert [f"x/{sample['__key__'].removeprefix('./')}" for sample in stock] == list(
        source.sample_ids
    )
    found = [next(v for k, v in sample.items() if k in ("jpg", "png", "x.jpg")) for sample in stock]
    assert [source.read(row) for row in range(3)] == found


def test_tars_ways_to_name_them(tmp_path: Path) -> None:
    """Folder, brace pattern, glob and single tar give the same ids."""
    for number in range(3):
        write_shard(tmp_path / "s" / f"x-{number:03d}.tar", 2, start=2 * number)
    whole = list(open_kind("tars", tmp_path / "s").sample_ids)
    assert whole[0] == "x-000/000000"
    assert list(open_kind("tars", tmp_path / "s" / "x-{000..002}.tar").sample_ids) == whole
    assert list(open_kind("tars", tmp_path / "s" / "x-*.tar").sample_ids) == whole
    assert list(open_kind("tars", tmp_path / "s" / "x-00[12].tar").sample_ids) == whole[2:]
    assert list(open_kind("tars", tmp_path / "s" / "x-001.tar").sample_ids) == whole[2:4]


def test_tars_in_several_folders(tmp_path: Path) -> None:
    """Tars of one name in different folders have different ids."""
    write_shard(tmp_path / "train" / "0.tar", 1)
    write_shard(tmp_path / "val" / "0.tar", 1)
    expected = ["train/0/000000", "val/0/000000"]
    assert list(open_kind("tars", f"{tmp_path}/*/0.tar").sample_ids) == expected
    assert list(open_kind("tars", f"{tmp_path}/**/*.tar").sample_ids) == expected
    assert list(open_kind("tars", f"{tmp_path}/{{train,val}}/0.tar").sample_ids) == expected


def test_tars_listed_by_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by one process; a bad tar is an error that names it. Each time in a cache folder of its own."""
    for number in range(6):
        write_shard(tmp_path / "tars" / f"{number}.tar", 3, start=3 * number)
    one = open_kind("tars", tmp_path / "tars")
    pools = []

    def counted(processes: int, **options: Any) -> Any:
        pools.append(processes)
        return ProcessPoolExecutor(processes, **options)

    monkeypatch.setattr(listed_files, "ProcessPoolExecutor", counted)
    monkeypatch.setattr(listed_files, "FILES_PER_PROCESS", 2)
    monkeypatch.setattr(listed_files, "share_of_cores", lambda workers: 3)
    monkeypatch.setattr("featstore.sources.listing.cache_folder", lambda: tmp_path / "second")
    several = open_kind("tars", tmp_path / "tars")
    assert list(several.sample_ids) == list(one.sample_ids)
    assert [several.read(row) for row in range(18)] == [one.read(row) for row in range(18)]
    assert str(several.labels) == str(one.labels)
    (tmp_path / "tars" / "3.tar").write_bytes(b"<html>" * 200)
    monkeypatch.setattr("featstore.sources.listing.cache_folder", lambda: tmp_path / "third")
    with pytest.raises(SourceError, match=r"3\.tar"):
        open_kind("tars", tmp_path / "tars")
    assert pools == [3, 3]
    assert not (tmp_path / "third").exists()


def test_a_listing_process_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the system where memory is short: an error with advice, in place of a wait without end."""
    for number in range(6):
        write_shard(tmp_path / f"{number}.tar", 3, start=3 * number)
    monkeypatch.setattr(listed_files, "FILES_PER_PROCESS", 2)
    monkeypatch.setattr(listed_files, "share_of_cores", lambda workers: 3)
    monkeypatch.setattr(TarSource, "_list", lambda *given: os._exit(9))
    with pytest.raises(SourceError, match=r"0 of 6"):
        open_kind("tars", tmp_path)


def test_tars_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns without a folder work from the working folder, and reading survives leaving it."""
    write_shard(tmp_path / "x-0.tar", 1)
    monkeypatch.chdir(tmp_path)
    sources = [open_kind("tars", name) for name in ("x-{0..0}.tar", "*.tar", "x-0.tar", ".")]
    monkeypatch.chdir("/")
    for source in sources:
        assert list(source.sample_ids) == ["x-0/000000"]
        assert source.read(0) == picture(0)


def test_tars_partial_labels(tmp_path: Path) -> None:
    """A sample without .cls, or with -1, has no label; without any .cls there are no labels."""
    members = [
        ("1.png", picture(1)),
        ("1.cls", b"4\n"),
        ("2.png", picture(2)),
        ("3.png", picture(3)),
    ]
    path = write_tar(tmp_path / "x.tar", *members, ("3.cls", b"-1"))
    labels = open_kind("tars", path).labels
    assert labels is not None
    assert labels.tolist() == [4, NO_LABEL, NO_LABEL]
    assert open_kind("tars", write_tar(tmp_path / "y.tar", members[0])).labels is None


@pytest.mark.parametrize("text", [b"cat", b"", b"1.5", b"--2", b"1_0", b"1" * 100])
def test_tars_bad_class(tmp_path: Path, text: bytes) -> None:
    path = write_tar(tmp_path / "x.tar", ("1.png", picture()), ("1.cls", text))
    with pytest.raises(SourceError, match=r"x\.tar.*1\.cls"):
        open_kind("tars", path)


def test_tars_key_without_image(tmp_path: Path) -> None:
    """Keys without an image are left out, counted and named."""
    path = write_tar(tmp_path / "x.tar", ("1.cls", b"1"), ("2.png", picture()))
    source = open_kind("tars", path)
    assert list(source.sample_ids) == ["x/2"]
    assert "1 (cls)" in source.notes[0]


def test_tars_of_other_endings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upper-case tars are read; compressed ones beside them are named, and unread members with the option for them."""
    monkeypatch.setattr("featstore.sources.base.has_heif", lambda: False)
    monkeypatch.setattr("featstore.sources.tars.has_heif", lambda: False)
    write_tar(tmp_path / "0.tar", ("0.jfif", picture(0)), ("1.heic", b"x"), ("2.img", picture(2)))
    write_tar(tmp_path / "2.TAR", ("0.jpg", picture(1)))
    (tmp_path / "1.tar.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "3.TGZ").write_bytes(b"\x1f\x8b")
    source = open_kind("tars", tmp_path)
    assert list(source.sample_ids) == ["0/0", "2/0"]
    notes = " ".join(source.notes)
    for text in ("1.tar.gz, 3.TGZ", "1 (heic), 2 (img)", "pillow-heif", "--source.image_member"):
        assert text in notes


def test_tars_say_which_member_is_the_image(tmp_path: Path) -> None:
    """An option chooses among several images of a key, and names an ending that is no image's."""
    members = [("0.jpg", picture(0)), ("0.seg.png", picture(1)), ("0.img", picture(2))]
    path = write_tar(tmp_path / "x.tar", *members)
    with pytest.raises(SourceError, match=r"--source\.image_member"):
        open_kind("tars", path)
    for number, member in enumerate(("jpg", ".seg.png", "IMG")):
        source = open_kind("tars", path, image_member=member)
        assert source.read(0) == picture(number)
        with TarReader(path) as reader:
            assert [image.read() for image in reader.images(image_member=member)] == [
                picture(number)
            ]
    with pytest.raises(SourceError, match="webp"):
        open_kind("tars", path, image_member="webp")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_hard_links(tmp_path: Path, form: int) -> None:
    """A hard link to an earlier file of the tar is that file, image or class; links elsewhere are named."""
    long = "a" * 60 + "/" + "b" * (20 if form == tarfile.USTAR_FORMAT else 90)
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as archive:
        for name, data in ((f"{long}.jpg", picture(5)), ("0.cls", b"7")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (("1.jpg", f"{long}.jpg"), ("1.cls", "0.cls"), ("2.jpg", "gone.jpg")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.LNKTYPE, target
            archive.addfile(member)
    source = open_kind("tars", tmp_path / "x.tar")
    assert list(source.sample_ids) == [f"x/{long}", "x/1"]
    assert [source.read(row) for row in range(2)] == [picture(5), picture(5)]
    assert source.labels is not None
    assert source.labels.tolist() == [NO_LABEL, 7]
    assert "2.jpg" in " ".join(source.notes)
    with TarReader(tmp_path / "x.tar") as reader:
        found = [(image.key, image.read()) for image in reader.images()]
    assert found == [(long, picture(5)), ("1", picture(5))]


def test_tars_classes_of_keys_with_dots(tmp_path: Path) -> None:
    """The key ends at the first dot, as in webdataset; the class is the member of the image's own name."""
    members = [
        ("22.05.jpg", picture(0)),
        ("22.05.cls", b"3"),
        ("23.cls", b"1"),
        ("23.a.jpg", picture(1)),
    ]
    source = open_kind("tars", write_tar(tmp_path / "x.tar", *members))
    assert list(source.sample_ids) == ["x/22", "x/23"]
    assert source.labels is not None
    assert source.labels.tolist() == [3, 1]


@pytest.mark.parametrize("second", ["1.jpg", "1.seg.png", "1.png"])
def test_tars_two_images_for_one_key(tmp_path: Path, second: str) -> None:
    path = write_tar(tmp_path / "x.tar", ("1.png", picture(0)), (second, picture(1)))
    with pytest.raises(SourceError, match="'1'"):
        open_kind("tars", path)


@pytest.mark.parametrize("name", ["/etc/1.png", "../1.png", "a/../../1.png"])
def test_tars_hostile_names(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "x.tar", ("0.png", picture()), (name, picture()))
    with pytest.raises(SourceError):
        open_kind("tars", path)


def test_tars_ignore_what_is_no_regular_file(tmp_path: Path) -> None:
    """Folders, links, devices and pipes in a tar are ignored."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in [
            ("d.png", tarfile.DIRTYPE),
            ("s.png", tarfile.SYMTYPE),
            ("l.png", tarfile.LNKTYPE),
            ("c.png", tarfile.CHRTYPE),
            ("p.png", tarfile.FIFOTYPE),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("r.png")
        member.size = len(picture())
        archive.addfile(member, io.BytesIO(picture()))
    source = open_kind("tars", path)
    assert list(source.sample_ids) == ["x/r"]
    assert source.read(0) == picture()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_long_and_foreign_names(tmp_path: Path, form: int) -> None:
    """Long and non-ASCII names are read in every dialect of tar."""
    long = "d" * 60 + "/" + "n" * 90 if form == tarfile.USTAR_FORMAT else "x" * 200
    names = [f"{long}.png", "\u00e4\u65e5\u672c.png"]
    path = write_tar(tmp_path / "x.tar", *((name, picture(1)) for name in names), form=form)
    source = open_kind("tars", path)
    assert list(source.sample_ids) == [f"x/{name.removesuffix('.png')}" for name in names]
    assert source.read(1) == picture(1)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar"])
def test_tars_compressed(tmp_path: Path, name: str) -> None:
    """A compressed tar is recognised by content, whatever its name."""
    plain = write_tar(tmp_path / "plain.tar", ("1.png", picture()))
    (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(SourceError):
        open_kind("tars", tmp_path / name)


def test_tars_nothing_matches(tmp_path: Path) -> None:
    """The message names the pattern and the folder, and what is there instead."""
    (tmp_path / "x.tar.gz").write_bytes(b"")
    for pattern in ("*.tar", "s-{0..3}.tar"):
        with pytest.raises(SourceError, match=r"x\.tar\.gz"):
            open_kind("tars", tmp_path / pattern)
    with pytest.raises(SourceError, match=r"\*\.tar.*x\.tar\.gz"):
        open_kind("tars", tmp_path)
    with pytest.raises(SourceError):
        open_kind("tars", tmp_path / "nothing" / "*.tar")
    with pytest.raises(SourceError):
        open_kind("tars", tmp_path / "nothing.tar")


def test_tars_unbalanced_braces(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        open_kind("tars", tmp_path / "x-{0..3.tar")


@pytest.mark.parametrize("url", ["s3://bucket/x.tar", "pipe:curl http://host/x.tar"])
def test_tars_remote(url: str) -> None:
    with pytest.raises(SourceError):
        open_kind("tars", url)


def test_tars_some_of_a_brace_pattern_missing(tmp_path: Path) -> None:
    write_shard(tmp_path / "s-1.tar", 1)
    with pytest.raises(SourceError, match=r"\b2\b.*\b3\b.*s-0\.tar.*s-2\.tar"):
        open_kind("tars", tmp_path / "s-{0..2}.tar")


def test_tars_without_samples(tmp_path: Path) -> None:
    """A tar without any image, empty or not, is named, also beside good ones."""
    write_shard(tmp_path / "a.tar", 1)
    write_tar(tmp_path / "b.tar")
    with pytest.raises(SourceError, match=r"b\.tar"):
        open_kind("tars", tmp_path)
    write_tar(tmp_path / "b.tar", ("1.txt", b"x"))
    with pytest.raises(SourceError, match=r"b\.tar"):
        open_kind("tars", tmp_path)


@pytest.mark.parametrize("data", [b"<html>not found</html>" * 50, bytes(range(256)) * 8])
def test_tars_not_a_tar(tmp_path: Path, data: bytes) -> None:
    """A file that is something else is refused, with or without leave for cut tars."""
    (tmp_path / "x.tar").write_bytes(data)
    for allow in (False, True):
        with pytest.raises(SourceError, match=r"x\.tar"):
            open_kind("tars", tmp_path, allow_cut_tars=allow)


def test_tars_hidden_members(tmp_path: Path) -> None:
    """What macOS puts into tars is no sample."""
    names = ("1.png", "a/.hidden.png", "._1.png", "__MACOSX/1.png", "./2.png")
    path = write_tar(tmp_path / "x.tar", *((name, picture()) for name in names))
    assert list(open_kind("tars", path).sample_ids) == ["x/1", "x/2"]


def cut_points(path: Path) -> list[tuple[int, int]]:
    """Places of interest in a shard of samples with three members, and the whole samples there.

    When the first header after the very first sample is cut, nothing tells whether that sample had
    further parts: it does not count.
    """
    points = []
    with tarfile.open(path) as archive:
        for number, member in enumerate(archive.getmembers()):
            before = number // 3
            known = 0 if number == 3 else before
            points += [(member.offset + 1, known), (member.offset + 511, known)]
            points += [(member.offset_data, before), (member.offset_data + member.size - 1, before)]
    return points


def test_tars_cut_anywhere(tmp_path: Path) -> None:
    """A cut in any header or payload is found; the whole samples before it can be taken."""
    data = write_shard(tmp_path / "whole.tar", 4).read_bytes()
    for number, (cut, complete) in enumerate(cut_points(tmp_path / "whole.tar")):
        path = tmp_path / f"cut{number}.tar"
        path.write_bytes(data[:cut])
        with pytest.raises(SourceError) as caught:
            open_kind("tars", path)
        message = str(caught.value)
        assert str(path) in message
        assert f"after {complete} complete samples" in message
        assert "--source.allow_cut_tars true" in message
        if complete == 0:
            assert "pass over it" in message
            with pytest.raises(SourceError):
                open_kind("tars", path, allow_cut_tars=True)
            continue
        source = open_kind("tars", path, allow_cut_tars=True)
        assert [source.read(row) for row in range(len(source))] == [
            picture(row) for row in range(complete)
        ]
        assert f"after {complete} complete samples; those were taken" in source.notes[0]
        path.unlink()


def test_tars_cut_message_names_the_byte(tmp_path: Path) -> None:
    """In a payload the file's end is named, in a header the start of that header."""
    path = write_tar(tmp_path / "x.tar", ("1.png", picture(1)), ("2.png", picture(2)))
    with tarfile.open(path) as archive:
        second = archive.getmembers()[1]
    data = path.read_bytes()
    path.write_bytes(data[: second.offset_data + 5])
    with pytest.raises(SourceError, match=rf"{second.offset_data + 5}.*'2"):
        open_kind("tars", path)
    path.write_bytes(data[: second.offset + 100])
    with pytest.raises(SourceError, match=rf"{second.offset}"):
        open_kind("tars", path)


def test_tars_cut_inside_long_name_headers(tmp_path: Path) -> None:
    """A cut in the extra headers of a long name is a cut as well, at the start of the tar too."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / "x.tar"
        write_tar(
            path, ("n" * 200 + ".png", picture(1)), ("m" * 200 + ".png", picture(2)), form=form
        )
        with tarfile.open(path) as archive:
            first, second = archive.getmembers()
        data = path.read_bytes()
        for cut in (600, 1024, 1300, first.offset_data, second.offset + 700, second.offset + 1024):
            path.write_bytes(data[:cut])
            with pytest.raises(SourceError):
                open_kind("tars", path)


def test_tars_without_end_mark(tmp_path: Path) -> None:
    """Whole members without the closing zeros, or the padding, are accepted and noted."""
    path = write_shard(tmp_path / "x.tar", 2)
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    data = path.read_bytes()
    end = last.offset_data + last.size
    for cut in (end, end + 1, -(-end // 512) * 512):
        path.write_bytes(data[:cut])
        source = open_kind("tars", path)
        assert len(source) == 2
        assert "no end-of-archive mark" in source.notes[0]
    path.write_bytes(data[: -(-end // 512) * 512 + 512])
    assert open_kind("tars", path).notes == []


def test_tars_damaged_header(tmp_path: Path) -> None:
    """A damaged header in the middle is found, where tarfile alone would end without a word."""
    path = write_shard(tmp_path / "x.tar", 4)
    with tarfile.open(path) as archive:
        fourth = archive.getmembers()[3]
    data = bytearray(path.read_bytes())
    data[fourth.offset + 150] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(SourceError, match=rf"{fourth.offset}"):
        open_kind("tars", path)


def test_tars_joined_with_cat(tmp_path: Path) -> None:
    """Samples after the first end mark would silently be missing."""
    one = write_shard(tmp_path / "a.tar", 2).read_bytes()
    (tmp_path / "a.tar").write_bytes(one + one)
    with pytest.raises(SourceError, match=rf"{len(one)}"):
        open_kind("tars", tmp_path)


def test_tars_empty_file(tmp_path: Path) -> None:
    """A file of zero bytes is a tar cut at its start; beside others it can be passed over."""
    write_shard(tmp_path / "a.tar", 2)
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(SourceError, match=r"b\.tar.*\b0\b"):
        open_kind("tars", tmp_path)
    source = open_kind("tars", tmp_path, allow_cut_tars=True)
    assert len(source) == 2
    assert "b.tar" in source.notes[0]


def test_tars_negative_size(tmp_path: Path) -> None:
    """A header with a negative size would send tarfile in a circle; it is refused at once."""
    path = write_tar(tmp_path / "x.tar", ("1.png", picture()), ("2.png", picture()))
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        start = archive.getmembers()[1].offset
    data[start + 124 : start + 136] = b"\xff" * 11 + b"\x00"  # base 256: -256
    data[start + 124 : start + 136] = (-1024).to_bytes(12, "big", signed=True)
    header = bytes(data[start : start + 512])
    checksum = sum(header[:148]) + sum(header[156:]) + 8 * 32
    data[start + 148 : start + 156] = b"%06o\0 " % checksum
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"x\.tar"):
        open_kind("tars", path)


def test_tars_changed_after_listing(tmp_path: Path) -> None:
    """Half an image, and images of another tar of the same name and size, are errors that name it."""
    path = write_shard(tmp_path / "x.tar", 2)
    source = open_kind("tars", path)
    content = path.read_bytes()
    source.read(0)
    path.write_bytes(content[:600])
    with pytest.raises(OSError, match=r"x\.tar"):
        source.read(1)  # the open file became shorter
    source = open_kind("tars", write_shard(tmp_path / "x.tar", 2))
    path.write_bytes(content[::-1])
    with pytest.raises(SourceError, match=r"x\.tar"):
        source.read(1)


def test_tars_in_other_process(tmp_path: Path) -> None:
    """A source that has open files can be pickled, and reads in a spawned process."""
    source = open_kind("tars", write_shard(tmp_path / "x.tar", 3))
    assert source.read(0) == picture(0)
    assert pickle.loads(pickle.dumps(source)).read(2) == picture(2)
    assert read_in_other_process(source, 1) == picture(1)


def test_tars_many_threads_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer open files than tars, threads still read the right bytes, and files are closed but for the listing."""
    monkeypatch.setattr(listed_files, "MAX_OPEN_FILES", 2)
    for number in range(6):
        write_tar(tmp_path / f"{number}.tar", ("x.png", picture(number)))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count of open files
    source = open_kind("tars", tmp_path)
    wrong: list[int] = []

    def read(seed: int) -> None:
        for row in np.random.default_rng(seed).integers(0, 6, 200):
            if source.read(int(row)) != picture(int(row)):
                wrong.append(int(row))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # noqa: PTH208


def test_tars_hostile_bytes(tmp_path: Path) -> None:
    """Changed bytes anywhere in a tar give a source or a SourceError, nothing else."""
    path = write_tar(
        tmp_path / "x.tar",
        ("n" * 120 + ".png", picture(1)),
        ("2.png", picture(2)),
        ("2.cls", b"1"),
        form=tarfile.PAX_FORMAT,
    )
    data = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 3):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            source = open_kind("tars", path)
        except SourceError as error:
            assert str(path) in str(error)
        else:
            assert len([source.read(row) for row in range(len(source))]) > 0


# ---------------------------------------------------------------- Hugging Face data sets


@pytest.fixture
def hf() -> Any:
    return pytest.importorskip("datasets", reason="the hf extra is not installed")


def hf_rows(hf: Any, numbers: range, *, names: list[str]) -> Any:
    rows = {
        "image": [{"bytes": picture(number), "path": None} for number in numbers],
        "label": [number % len(names) for number in numbers],
    }
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=names)})
    return hf.Dataset.from_dict(rows, features=features)


def test_hf_dataset(tmp_path: Path, hf: Any) -> None:
    """A Dataset gives ids by position, the files' own bytes, and its class names."""
    hf_rows(hf, range(4), names=["cat", "dog"]).save_to_disk(tmp_path / "set")
    source = open_kind("hf", tmp_path / "set")
    assert list(source.sample_ids) == ["00000000", "00000001", "00000002", "00000003"]
    assert [source.read(row) for row in range(4)] == [picture(number) for number in range(4)]
    assert source.class_names == ("cat", "dog")
    assert labels_of(source) == ["cat", "dog", "cat", "dog"]
    assert pickle.loads(pickle.dumps(source)).read(3) == picture(3)
    assert read_in_other_process(source, 2) == picture(2)


def test_hf_dataset_dict(tmp_path: Path, hf: Any) -> None:
    """A DatasetDict gives ids by split and position."""
    names = ["cat", "dog"]
    splits = {
        "train": hf_rows(hf, range(3), names=names),
        "test": hf_rows(hf, range(3, 5), names=names),
    }
    hf.DatasetDict(splits).save_to_disk(tmp_path / "set")
    source = open_kind("hf", tmp_path / "set")
    assert list(source.sample_ids) == [
        *(f"train/{number:08d}" for number in range(3)),
        *(f"test/{number:08d}" for number in range(2)),
    ]
    assert [source.read(row) for row in range(5)] == [picture(number) for number in range(5)]
    assert labels_of(source) == ["cat", "dog", "cat", "dog", "cat"]
    test = open_kind("hf", tmp_path / "set", include=["test/*"])
    assert test.read(1) == picture(4)


def test_hf_selected_rows(tmp_path: Path, hf: Any) -> None:
    """A data set saved after shuffling and selecting keeps image and label together."""
    rows = hf_rows(hf, range(6), names=["a", "b", "c"]).select([5, 0, 4])
    rows.save_to_disk(tmp_path / "set")
    source = open_kind("hf", tmp_path / "set")
    assert [source.read(row) for row in range(3)] == [picture(number) for number in (5, 0, 4)]
    assert labels_of(source) == ["c", "a", "b"]


def test_hf_image_given_by_path(tmp_path: Path, hf: Any) -> None:
    """Paths in a text column are read as files; text labels become sorted classes; null is none."""
    put(tmp_path, "1.png", "2.png", "3.png")
    paths = [str(tmp_path / f"{number}.png") for number in (1, 2, 3)]
    rows = hf.Dataset.from_dict({"file": paths, "kind": ["b", None, "a"]})
    rows.save_to_disk(tmp_path / "set")
    source = open_kind("hf", tmp_path / "set", image_column="file", label_column="kind")
    assert [source.read(row) for row in range(3)] == [Path(path).read_bytes() for path in paths]
    assert labels_of(source) == ["b", NO_LABEL, "a"]


def test_hf_bytes_column_and_missing_image(tmp_path: Path, hf: Any) -> None:
    """A column of bytes works; a row without an image is an OSError that names it."""
    rows = hf.Dataset.from_dict({"image": [picture(1), None]})
    rows.save_to_disk(tmp_path / "set")
    source = open_kind("hf", tmp_path / "set")
    assert source.read(0) == picture(1)
    assert source.labels is None
    with pytest.raises(OSError, match="00000001"):
        source.read(1)


def test_hf_wrong_columns(tmp_path: Path, hf: Any) -> None:
    """A missing column lists those there are; a column of another type says which it is."""
    rows = hf.Dataset.from_dict({"img": [picture(1)], "number": [3], "share": [0.5]})
    rows.save_to_disk(tmp_path / "set")
    with pytest.raises(SourceError, match="'image'"):
        open_kind("hf", tmp_path / "set")
    with pytest.raises(SourceError, match=r"'number'.*int64"):
        open_kind("hf", tmp_path / "set", image_column="number")
    with pytest.raises(SourceError, match=r"'share'.*float64"):
        open_kind("hf", tmp_path / "set", image_column="img", label_column="share")
    source = open_kind("hf", tmp_path / "set", image_column="img", label_column="number")
    assert source.labels is not None
    assert source.labels.tolist() == [3]


def test_hf_splits_that_disagree(tmp_path: Path, hf: Any) -> None:
    """Splits whose classes mean different things cannot be one source."""
    splits = {
        "a": hf_rows(hf, range(2), names=["cat", "dog"]),
        "b": hf_rows(hf, range(2), names=["dog", "cat"]),
    }
    hf.DatasetDict(splits).save_to_disk(tmp_path / "set")
    with pytest.raises(SourceError, match="'label'"):
        open_kind("hf", tmp_path / "set")


def test_hf_split_without_labels(tmp_path: Path, hf: Any) -> None:
    """A split without the label column has no labels, the other keeps its own."""
    rows = hf_rows(hf, range(2), names=["cat", "dog"])
    hf.DatasetDict({"a": rows, "b": rows.remove_columns("label")}).save_to_disk(tmp_path / "set")
    assert labels_of(open_kind("hf", tmp_path / "set")) == ["cat", "dog", NO_LABEL, NO_LABEL]


def test_hf_not_a_saved_dataset(tmp_path: Path, hf: Any) -> None:
    put(tmp_path, "1.png")
    with pytest.raises(SourceError, match="save_to_disk"):
        open_kind("hf", tmp_path)
    with pytest.raises(SourceError):
        open_kind("hf", tmp_path / "nothing")


def test_hf_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library the message says what to install."""
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ModuleNotFoundError("No module named 'datasets'", name="datasets")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SourceError, match=r'"featstore-distill\[hf\]"'):
        open_kind("hf", tmp_path)


# ---------------------------------------------------------------- all kinds


def test_import_is_light() -> None:
    """Importing the sources pulls none of the heavy libraries."""
    code = (
        "import sys, featstore.sources\n"
        "heavy = {'torch', 'webdataset', 'datasets', 'sklearn', 'timm', 'open_clip', 'pandas'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_suffixes_are_lower_case() -> None:
    """Suffixes are compared in lower case, so the list must be."""
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


def hf_arrays(hf: Any, path: Path, values: list[Any], feature: Any = None) -> Source:
    features = None if feature is None else hf.Features({"image": feature})
    hf.Dataset.from_dict({"image": values}, features=features).save_to_disk(path)
    return open_kind("hf", path)


@pytest.mark.parametrize("kind", ["lists", "uint8 lists", "Array2D", "colour", "channels first"])
def test_hf_arrays_keep_their_levels(tmp_path: Path, hf: Any, kind: str) -> None:
    """Arrays of 0..255 become the same 8-bit pictures, whatever integer type the column has; none is black."""
    pixels = gradient(12, 10)
    value = {"colour": pixels, "channels first": pixels.transpose(2, 0, 1)}.get(
        kind, pixels[..., 0]
    )
    feature = {
        "uint8 lists": hf.Sequence(hf.Sequence(hf.Value("uint8"))),
        "Array2D": hf.Array2D((10, 12), "uint8"),
        "colour": hf.Array3D((10, 12, 3), "uint8"),
        "channels first": hf.Array3D((3, 10, 12), "int32"),
    }.get(kind)
    source = hf_arrays(hf, tmp_path / "set", [value.tolist()] * 2, feature)
    found = np.asarray(decode_image(source.read(1)))
    expected = pixels if value.ndim == 3 else np.repeat(pixels[..., :1], 3, axis=2)
    np.testing.assert_array_equal(found, expected)
    assert bool(source.notes) == (kind in ("lists", "channels first"))
    assert read_in_other_process(source, 1) == source.read(1)


def test_hf_arrays_of_other_ranges(tmp_path: Path, hf: Any) -> None:
    """16-bit levels are scaled by 1/257; floats, negative and larger numbers are refused with what was found."""
    deep = hf_arrays(hf, tmp_path / "deep", [[[0, 65535], [257, 514]]])
    assert np.asarray(decode_image(deep.read(0)))[..., 0].tolist() == [[0, 255], [1, 2]]
    stated = hf.Sequence(hf.Sequence(hf.Value("uint16")))
    dark = hf_arrays(hf, tmp_path / "dark", [[[0, 300], [1, 2]]], stated)
    assert np.asarray(decode_image(dark.read(0))).max() == 1
    for name, values in (("float", [[[0.5]]]), ("low", [[[-1]]]), ("high", [[[70_000]]])):
        with pytest.raises(SourceError, match="image"):
            hf_arrays(hf, tmp_path / name, values)


def test_hf_labels_that_mean_no_class(tmp_path: Path, hf: Any) -> None:
    """-100 and its like are images without a class, and are named; ids are renumbered, or refused beyond 63 bits."""
    import pyarrow as pa

    from featstore.sources.hf import class_numbers

    def save(name: str, labels: Any, feature: Any) -> Source:
        rows = {"image": [{"bytes": picture(0), "path": None}] * len(labels), "label": labels}
        features = hf.Features({"image": hf.Image(), "label": feature})
        hf.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / name)
        return open_kind("hf", tmp_path / name)

    for number, kind in ((-100, hf.Value("int64")), (-1, hf.ClassLabel(names=["cat", "dog"]))):
        source = save(str(number), [number, 0, 1, -1], kind)
        assert source.labels is not None
        assert source.labels.tolist() == [NO_LABEL, 0, 1, NO_LABEL]
        assert ("-100" in " ".join(source.notes)) == (number == -100)
    ids = save("ids", [2**40, 2**40 + 7, 2**40], hf.Value("int64"))
    assert ids.labels is not None
    assert (ids.labels.tolist(), ids.class_names) == ([0, 1, 0], (str(2**40), str(2**40 + 7)))
    with pytest.raises(SourceError, match="ids"):
        class_numbers(pa.array([2**63 + 5], pa.uint64()), None)
