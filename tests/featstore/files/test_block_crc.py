"""Checksums of blocks, however the bytes are cut into pieces."""

import google_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore.files.block_crc import BlockCrc


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 30))
def test_pieces_make_no_difference(pieces: list[bytes], block_bytes: int) -> None:
    """Blocks have the checksums that they have when all bytes come at once; the last one may be shorter."""
    data, sums = b"".join(pieces), BlockCrc(block_bytes)
    found = [crc for piece in pieces for crc in sums.update(piece)]
    blocks = [data[at : at + block_bytes] for at in range(0, len(data), block_bytes)]
    assert [*found, *sums.rest()] == [google_crc32c.value(block) for block in blocks]
    assert sums.bytes == len(data)


def test_bytes_before_the_first_piece() -> None:
    """Blocks are counted from the bytes that were there before, also where the last one is short."""
    sums = BlockCrc(4, start=8)
    assert list(sums.update(b"abcdef")) == [google_crc32c.value(b"abcd")]
    assert sums.rest() == [google_crc32c.value(b"ef")]
    assert BlockCrc(4, start=10).rest() == []
