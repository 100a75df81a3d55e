"""Headers of tar archives and of npy members, written many at a time and read one at a time.

Python's tarfile makes and reads one header in some 30 microseconds, which is longer than everything else that is done
to a row. What is written here is what tarfile writes (tests compare). What is read may come from anybody: every size is
compared to what is there before it is used.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from featstore.files.array_types import Array, Bytes

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)  # two blocks of zeros end an archive
MOST_MEMBER_BYTES = 8 * 2**30  # sizes have eleven octal digits
_MOST_NAME_BYTES = 2**20  # longer names are not read: memory would be the sender's choice

_MOST_NPY_HEADER = 4096

_REGULAR = b"0\0" + b"7"
_WITHOUT_DATA = b"123456"
"""Links, devices, folders, pipes: whatever size they state, no data follows."""

_DESCR = re.compile(rb"'descr': *'([<|][a-z][0-9]{1,2})'")
_ORDER = re.compile(rb"'fortran_order': *(True|False)")
_RECORD = re.compile(rb"([0-9]{1,7}) ")
_SHAPE = re.compile(rb"'shape': *\(([0-9, ]{0,400})\)")


class BadTar(ValueError):
    """The bytes are not an archive that can be read; the message says why."""


class NoHeader(BadTar):
    """There is no tar header at a byte."""

    def __init__(self, at: int) -> None:
        super().__init__(f"no tar header at byte {at:,}")
        self.at = at


class CutMember(BadTar):
    """The archive ends inside a member."""

    def __init__(self, member: str, problem: str) -> None:
        super().__init__(f"member {member!r} {problem}")
        self.member = member


class SparseFile(BadTar):
    """A member is a sparse file, which cannot be read by position."""


class Member(NamedTuple):
    """One entry of an archive."""

    name: str
    regular: bool  # whether it is a file; else a folder, a link or anything that is none
    start: int  # first byte of its headers
    data: int  # first byte of its data
    size: int  # bytes of its data
    end: int  # first byte of what follows
    link: str = ""  # of a hard link, the name of the earlier member whose data it shares
    folder: bool = False


class NpyHeader(NamedTuple):
    """What the header of an npy file says."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int  # bytes of the header: data begin there


Read = Callable[[int, int], bytes]
"""Give some bytes of the archive, all of them, from .. to; BadTar where they are not there."""


def padded(size: int) -> int:
    """Round up to whole blocks."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def extension_blocks(names: Sequence[str]) -> int:
    """Blocks of extended header (pax) that each member needs so that all of them can have headers of one size.

    0 where every name is ASCII and fits the fields of a plain (ustar) header.
    """
    if all(map(str.isascii, names)) and (_short(names) or all(map(_split, names))):
        return 0
    most = max(len(_record("path", name)) for name in names)
    return -(-(most + 12) // BLOCK_BYTES)  # 12: the shortest record that fills the rest


def headers(names: Sequence[str], sizes: Array, extensions: int) -> Bytes:
    """Headers of many regular files: no owner, no time, mode 644.

    Args:
        sizes: (n,) bytes of the data of each.
        extensions: from ``extension_blocks``, of these names or more.

    Returns:
        (n, bytes of a header) uint8.
    """
    if not extensions:
        fields = name_fields(names)
        assert fields is not None, "a name needs an extension"
        return _plain(*fields, sizes, b"0")
    body = np.frombuffer(
        b"".join(_extension(name, extensions) for name in names), dtype=np.uint8
    ).reshape(len(names), -1)
    # Readers without pax see this name; it is not used otherwise.
    short = _text([name.encode("ascii", "replace")[:100] for name in names], 100)
    no_prefix = np.zeros((1, 155), dtype=np.uint8)
    first = _plain(_text([b"././@PaxHeader"], 100), no_prefix, np.array([body.shape[1]]), b"x")
    second = _plain(short, no_prefix, sizes, b"0")
    return np.concatenate([np.broadcast_to(first, (len(names), BLOCK_BYTES)), body, second], axis=1)


def name_fields(names: Sequence[str]) -> tuple[Bytes, Bytes] | None:
    """Fields name (n, 100) and prefix (n, 155) of plain headers; None where a name does not fit."""
    packed = [name.encode() for name in names]
    if _short(packed):
        return _text(packed, 100), np.zeros((len(packed), 155), dtype=np.uint8)
    split = [_split(name) for name in names]
    fitting = [part for part in split if part is not None]
    if len(fitting) < len(split):
        return None
    return _text([part[1] for part in fitting], 100), _text([part[0] for part in fitting], 155)


def _short(names: Sequence[str] | Sequence[bytes]) -> bool:
    """Whether all fit the name field alone."""
    return max(map(len, names), default=0) <= 100


def _split(name: str) -> tuple[bytes, bytes] | None:
    """(prefix, name) as ustar has them, the first that fits; None if none does."""
    data = name.encode()
    if len(data) <= 100:
        return b"", data
    at = data.find(b"/")
    while 0 <= at <= 155:
        if at > 0 and 0 < len(data) - at - 1 <= 100:
            return data[:at], data[at + 1 :]
        at = data.find(b"/", at + 1)
    return None


def _record(key: str, value: str) -> bytes:
    """A pax record: its own length in decimal digits, then key and value."""
    rest = f" {key}={value}\n".encode()
    size = len(rest) + 1
    while len(str(size)) + len(rest) != size:
        size = len(str(size)) + len(rest)
    return str(size).encode() + rest


def _extension(name: str, blocks: int) -> bytes:
    path = _record("path", name)
    rest = blocks * BLOCK_BYTES - len(path)
    # A comment fills the rest, so that all are of one size.
    start = f"{rest} comment=".encode()
    return path + start + b" " * (rest - len(start) - 1) + b"\n"


def _plain(names: Bytes, prefixes: Bytes, sizes: Array, kind: bytes) -> Bytes:
    block = np.zeros((len(names), BLOCK_BYTES), dtype=np.uint8)
    block[:, 0:100] = names
    block[:, 100:124] = np.frombuffer(b"0000644\x000000000\x000000000\0", dtype=np.uint8)
    block[:, 124:135] = _octal(np.asarray(sizes, dtype=np.int64), 11)
    block[:, 136:147] = ord("0")
    block[:, 148:156] = ord(" ")
    block[:, 156] = kind[0]
    block[:, 257:265] = np.frombuffer(b"ustar\x0000", dtype=np.uint8)
    block[:, 345:500] = prefixes
    block[:, 148:154] = _octal(block.sum(axis=1, dtype=np.int64), 6)
    block[:, 154] = 0
    return block


def _text(values: list[bytes], width: int) -> Bytes:
    return np.array(values, dtype=f"S{width}").view(np.uint8).reshape(len(values), width)


def _octal(values: Array, digits: int) -> Bytes:
    places = 3 * np.arange(digits - 1, -1, -1)
    return ((values[:, None] >> places & 7) + ord("0")).astype(np.uint8)


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Header of an npy file, version 1.0, as numpy writes it: a multiple of 64 bytes."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    # numpy leaves room for the first axis to grow to 21 digits.
    room = 21 - len(str(shape[0])) if shape else 0
    size = -(-(10 + len(text) + room + 1) // 64) * 64
    text = text.ljust(size - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def members(read: Read, start: int, stop: int) -> Iterator[Member]:
    """Walk an archive from one header on.

    Args:
        stop: members must end there or before; where they end exactly there, no mark of the end is needed.

    Raises:
        BadTar: a header is damaged, or a member is larger than what is there.
    """
    while start < stop:
        member = read_member(read, start, stop)
        if member is None:
            return
        yield member
        start = member.end


def read_member(read: Read, start: int, stop: int) -> Member | None:
    """The member whose headers begin at ``start``; None at the mark of the end."""
    name: str | None = None
    link: str | None = None
    size: int | None = None
    at = start
    for _ in range(16):  # headers that extend one another
        block = _header(read, at, stop)
        if block is None:
            if at == start:
                return None
            raise BadTar(f"it ends at byte {at} after an extended header")
        kind = block[156:157]
        found = _number(block[124:136])
        at += BLOCK_BYTES
        if kind in b"xgLK":
            if found > _MOST_NAME_BYTES or at + padded(found) > stop:
                raise BadTar(f"an extended header of {found:,} bytes at byte {at}")
            body = read(at, at + found)
            at += padded(found)
            if kind == b"L":
                name = _decode(body.split(b"\0", 1)[0])
            elif kind == b"K":
                link = _decode(body.split(b"\0", 1)[0])
            elif kind == b"x":
                records = _records(body)
                name = records.get("path", name)
                link = records.get("linkpath", link)
                size = _decimal(records["size"]) if "size" in records else size
            continue
        if link is None:
            link = _decode(block[157:257].split(b"\0", 1)[0])
        return _member(block, kind, name, link, found if size is None else size, start, at, stop)
    raise BadTar(f"more than 16 extended headers from byte {start} on")


def _member(
    block: bytes,
    kind: bytes,
    name: str | None,
    link: str,
    size: int,
    start: int,
    at: int,
    stop: int,
) -> Member:
    if kind == b"S":
        raise SparseFile(f"a sparse file at byte {start}, which cannot be read by position")
    if name is None:
        name = _decode(block[:100].split(b"\0", 1)[0])
        prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
        name = f"{_decode(prefix)}/{name}" if prefix else name
    if kind == b"\0" and name.endswith("/"):
        kind = b"5"  # as folders were written before 1988
    if kind in _WITHOUT_DATA:
        return Member(name, False, start, at, 0, at, link if kind == b"1" else "", kind == b"5")
    end = at + padded(size)
    if at + size > stop:
        left = max(0, stop - at)
        raise CutMember(name, f"of {size:,} bytes at byte {at:,}, but {left:,} are left")
    return Member(name, kind in _REGULAR, start, at, size, min(end, stop))


def _header(read: Read, at: int, stop: int) -> bytes | None:
    if at + BLOCK_BYTES > stop:
        raise BadTar(f"it breaks off inside a header at byte {at:,}")
    block = read(at, at + BLOCK_BYTES)
    if block[0] == 0 and not block.strip(b"\0"):
        return None
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    with suppress(BadTar):
        if _number(block[148:156]) == total:
            return block
    raise NoHeader(at)


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip()
    try:
        # int() also takes signs and underscores.
        if text.strip(b"01234567"):
            raise ValueError
        return int(text or b"0", 8)
    except ValueError:
        raise BadTar(f"{field!r} for a number in a header") from None


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _decimal(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise BadTar(f"{text[:40]!r} for a number in an extended header")
    return int(text)


def _records(body: bytes) -> dict[str, str]:
    """Records of a pax header; what is not a record ends the list."""
    found: dict[str, str] = {}
    at = 0
    while match := _RECORD.match(body, at):
        stop = at + int(match[1])
        key, sign, value = body[match.end() : stop - 1].partition(b"=")
        if not sign or body[stop - 1 : stop] != b"\n":
            break
        found[_decode(key)] = _decode(value)
        at = stop
    if any(key.startswith("GNU.sparse") for key in found):
        raise SparseFile("a sparse file, which cannot be read by position")
    return found


def read_npy_header(data: bytes) -> NpyHeader:
    """Parse the header of an npy file without evaluating it; plain numbers and booleans only, in C order.

    Args:
        data: the first bytes of the file, all of the header among them (4,096 are always enough).

    Raises:
        BadTar: it is not one, or says that the data are objects.
    """
    if data[:6] != b"\x93NUMPY" or data[6:7] not in (b"\1", b"\2", b"\3"):
        raise BadTar("not an npy file")
    width = 2 if data[6] == 1 else 4
    size = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if size > min(len(data), _MOST_NPY_HEADER):
        raise BadTar(f"an npy header of {size:,} bytes")
    text = data[8 + width : size]
    descr, order, shape = _DESCR.search(text), _ORDER.search(text), _SHAPE.search(text)
    if descr is None or order is None or shape is None or order[1] == b"True":
        raise BadTar(f"an npy header {text.strip()[:120]!r}, not of plain numbers in C order")
    lengths = [part for part in shape[1].replace(b" ", b"").split(b",") if part]
    if any(len(part) > 18 for part in lengths) or len(lengths) > 32:
        raise BadTar(f"an npy header of shape ({shape[1].decode()[:80]})")
    try:
        dtype = np.dtype(descr[1].decode())
    except TypeError:
        raise BadTar(f"an npy header of type {descr[1].decode()!r}") from None
    if dtype.kind not in "biuf":
        raise BadTar(f"an npy header of type {dtype}")
    return NpyHeader(dtype, tuple(int(part) for part in lengths), size)
