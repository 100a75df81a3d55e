"""Headers of tars and npy files: the same as tarfile's and numpy's, and no error but ours."""

import io
import tarfile
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.files.tar_headers import (
    END,
    BadTar,
    Member,
    extension_blocks,
    headers,
    members,
    npy_header,
    padded,
    read_npy_header,
)

NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40
) | st.text("ab/.", min_size=1, max_size=300)

FORMS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])

KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])


def walk(data: bytes) -> list[Member]:
    """All members of an archive in memory."""

    def read(start: int, stop: int) -> bytes:
        if not 0 <= start <= stop <= len(data):
            raise BadTar("it ends before")
        return data[start:stop]

    return list(members(read, 0, len(data)))


def named(name: str) -> str:
    """A name as tarfile gives it back: without slashes at its end."""
    return name.rstrip("/")


@given(contents=st.lists(st.tuples(NAMES, st.binary(max_size=2000), KINDS), max_size=6), form=FORMS)
def test_walks_like_tarfile(contents: list[tuple[str, bytes, bytes]], form: int) -> None:
    """Names, kinds, places and sizes of what tarfile wrote, in each of its formats, are those that it reads."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data, kind in contents:
            info = tarfile.TarInfo(name)
            info.type = kind
            # A name that ends in a slash was a folder once, whatever tarfile writes after it.
            file_kind = kind in (tarfile.REGTYPE, tarfile.AREGTYPE) and not name.endswith("/")
            info.size = len(data) if file_kind else 0
            try:
                archive.addfile(info, io.BytesIO(data))
            except ValueError:  # longer than ustar has room for
                continue
    raw = file.getvalue()
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        expected = [(named(m.name), m.isreg(), m.offset_data, m.size) for m in archive]
    assert [(named(m.name), m.regular, m.data, m.size) for m in walk(raw)] == expected


@given(st.lists(NAMES, min_size=1, max_size=5), st.data())
def test_written_headers(names: list[str], data: st.DataObject) -> None:
    """Whatever the names, headers of all members have one size, and tarfile reads names and sizes back."""
    sizes = np.array([data.draw(st.integers(0, 3000)) for _ in names])
    extensions = extension_blocks(names)
    rows = headers(names, sizes, extensions)
    raw = b"".join(
        row.tobytes() + bytes(padded(size)) for row, size in zip(rows, sizes.tolist(), strict=True)
    )
    with tarfile.open(fileobj=io.BytesIO(raw + END)) as archive:
        found = archive.getmembers()
    assert [named(member.name) for member in found] == [named(name) for name in names]
    assert [member.size for member in found] == sizes.tolist()
    assert {member.mtime for member in found} == {0}
    assert [(named(m.name), m.size) for m in walk(raw)] == [
        (named(name), size) for name, size in zip(names, sizes.tolist(), strict=True)
    ]


@pytest.mark.parametrize("length", [*range(980, 1040), *range(480, 530)])
def test_long_names_of_every_length(length: int) -> None:
    """A record states its own length, whose digits are part of it: no length falls between."""
    names = ["x" * length, "short"]
    rows = headers(names, np.array([0, 0]), extension_blocks(names))
    raw = rows.tobytes() + END
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        assert archive.getnames() == names
    assert [member.name for member in walk(raw)] == names


@given(st.binary(max_size=3000))
def test_garbage_is_refused(data: bytes) -> None:
    """Bytes that are no tar give members or ``BadTar``, and nothing else."""
    with suppress(BadTar):
        walk(data)


@given(st.data())
def test_damaged_archives_are_refused(data: st.DataObject) -> None:
    """Neither a changed header nor a cut leads to anything but ``BadTar``, and members stay inside the file."""
    file = io.BytesIO()
    form = data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name in ("a.npy", "ä" * 200, "b/c.json"):
            info = tarfile.TarInfo(name)
            info.size = 700
            archive.addfile(info, io.BytesIO(bytes(700)))
    raw = bytearray(file.getvalue()[:6000])
    at = data.draw(st.integers(0, len(raw) - 1))
    what = data.draw(st.binary(min_size=1, max_size=12))
    raw[at : at + len(what)] = what
    start = at // 512 * 512
    raw[start + 148 : start + 156] = b" " * 8
    raw[start + 148 : start + 156] = b"%06o\0 " % (sum(raw[start : start + 512]) % 8**6)
    cut = data.draw(st.integers(0, len(raw)))
    try:
        found = walk(bytes(raw[:cut]))
    except BadTar:
        return
    for member in found:
        assert 0 <= member.start < member.data <= member.data + member.size <= cut


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<i8"])
@pytest.mark.parametrize("shape", [(), (3,), (1, 1024), (7, 7, 3), (10**6, 2), (1,) * 9], ids=str)
def test_npy_headers(dtype: str, shape: tuple[int, ...]) -> None:
    """They are numpy's, byte by byte, and read back."""
    file = io.BytesIO()
    said: dict[str, Any] = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, said)
    assert npy_header(np.dtype(dtype), shape) == file.getvalue()
    found = read_npy_header(file.getvalue() + b"data")
    assert found == (np.dtype(dtype), shape, len(file.getvalue()))


@given(st.binary(max_size=200), st.integers(0, 140))
def test_npy_garbage_is_refused(data: bytes, at: int) -> None:
    """Nothing in a header is evaluated; what is not plain numbers is ``BadTar``."""
    sound = npy_header(np.dtype("<f2"), (2, 3))
    for text in (data, sound[:at] + data + sound[at + len(data) :], sound[:at]):
        try:
            found = read_npy_header(text)
        except BadTar:
            continue
        assert found.dtype.kind in "biuf"
        assert found.size <= len(text)
