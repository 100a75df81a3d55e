"""int8 codes to numbers: with and without the compiled loop."""

import numpy as np
import pytest

from featstore.format import int8
from featstore.format.int8 import COMPILED_FROM, Channels, dequantise


@pytest.mark.parametrize("rows", [COMPILED_FROM // 64, COMPILED_FROM // 64 - 1, 3])
def test_the_compiled_loop_gives_the_bits_of_numpy(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From ``COMPILED_FROM`` codes on with numba, below it and without numba with numpy: always the same bits."""
    pytest.importorskip("numba")
    generator = np.random.default_rng(0)
    codes = generator.integers(-127, 128, (rows, 1, 64)).astype(np.int8)
    scale = generator.random((rows, 1), dtype=np.float32) * 100
    scale[0] = 0
    channels = Channels(*generator.normal(size=(2, 64)).astype(np.float32))
    channels.scale.flags.writeable = False  # as scales that were read
    found = dequantise(codes, scale, channels)
    monkeypatch.setattr(int8, "_compiled_loop", lambda: None)
    out = np.full_like(found, np.nan)
    assert dequantise(codes, scale, channels, out=out) is out
    np.testing.assert_array_equal(found, out)
    expected = codes.astype(np.float64) * scale[..., None] * channels.scale + channels.offset
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
