"""Records of pseudo-samples: a picture by hand, the same bytes everywhere, moments of many, and bad records."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from featstore.errors import ConfigError
from featstore.format.pseudo_samples import PseudoSamples
from tests import pseudo
from tests.conftest import ROOT


def pixels(record: PseudoSamples, sample_id: str) -> Any:
    """(P,) numbers of a picture."""
    count = record.size[0] * record.size[1] * record.channels
    return np.frombuffer(record.draw(sample_id)[-count:], np.uint8).astype(np.int64)


def test_a_picture_by_hand() -> None:
    """mean + deviation z + z' factor, each normal number the centred sum of twelve 16-bit ones; rounded."""
    record = pseudo.record()
    drawn = hashlib.shake_256(b"pseudo_samples 1\0dog\x007").digest(24 * 32)
    normal = (np.frombuffer(drawn, "<u2").reshape(32, 12).sum(1) - 12 * 65535 / 2) / 65536
    exact = record.mean[1] + record.deviation[1] * normal[:30] + normal[30:] @ record.factor[1]
    found = pixels(record, "covariance/dog/00000007")
    assert record.draw("covariance/dog/00000007").startswith(b"P5\n5 6\n255\n")
    # Values have eight bits after the point: a pixel near a half may fall to the other side.
    assert np.abs(found - exact).max() < 0.6


def test_the_bytes_are_the_same_everywhere(tmp_path: Path) -> None:
    """In another process with other threads, from the file; and today as when this was written."""
    path = pseudo.write_record(tmp_path, rank=3)
    code = (
        "import sys, hashlib; from pathlib import Path; from featstore.sources.synthetic import read_record;"
        f"record = read_record(Path({str(path)!r}))[0];"
        "print(hashlib.sha256(record.draw('covariance/cat/00000005')).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    here = hashlib.sha256(pseudo.record(rank=3).draw("covariance/cat/00000005")).hexdigest()
    assert there.strip() == here
    noise = hashlib.sha256(PseudoSamples.noise(8).draw("noise/all/00000000")).hexdigest()
    assert noise == "711b6ea141be5aa0dc8890f25a8cb5afa4853c3ddae4641729a989d37de698c4"


def test_many_have_the_moments_of_the_record() -> None:
    """Mean, variance and covariance of 4,000 pictures."""
    record = pseudo.record()
    drawn = np.stack([pixels(record, record.id_of("cat", seed)) for seed in range(4000)])
    np.testing.assert_allclose(drawn.mean(0), record.mean[0], atol=1.5)
    expected = record.factor[0].T @ record.factor[0] + np.diag(record.deviation[0] ** 2)
    np.testing.assert_allclose(np.cov(drawn.T), expected, atol=25)  # of up to 700


def test_a_record_survives_its_file() -> None:
    """With and without a factor, and noise."""
    for record in (pseudo.record(), pseudo.record(rank=0, kind="moments"), PseudoSamples.noise(4)):
        again = PseudoSamples.from_tensors(load(record.to_bytes()))
        assert again.to_bytes() == record.to_bytes()
        assert again.meaning == record.meaning
    assert "reveal" in pseudo.record().meaning
    assert "60" in pseudo.record().meaning


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (6, 6)}, "6 x 6"),
        ({"size": (0, 5)}, "size"),
        ({"channels": 3}, "3 channels"),
        ({"classes": ("cat",)}, "names of 1"),
        ({"classes": ("cat", "cat")}, "cat, cat"),
        ({"counts": (1, 2, 3)}, "3 classes"),
        ({"mean": np.full((2, 30), np.nan, np.float32)}, "mean"),
        ({"mean": np.zeros((2, 30))}, "float64"),
        ({"deviation": np.full((2, 30), -1, np.float32)}, "deviation"),
        ({"factor": np.full((2, 1, 30), np.inf, np.float32)}, "factor"),
        ({"factor": np.zeros((2, 1, 20), np.float32)}, "factor"),
        ({"kind": "other"}, "other"),
    ],
)
def test_records_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    """Another size, NaN, another number of classes: an error that says which."""
    record = pseudo.record()
    values = {name: getattr(record, name) for name in record.__dataclass_fields__}
    with pytest.raises(ConfigError, match=message):
        PseudoSamples(**{**values, **changes})


@pytest.mark.parametrize("sample_id", ["covariance/cow/1", "noise/cat/1", "covariance/cat/x", "a"])
def test_ids_of_another_record(sample_id: str) -> None:
    """Named in the error."""
    with pytest.raises(ConfigError, match=sample_id):
        pseudo.record().draw(sample_id)


def test_files_that_are_no_record() -> None:
    """Tensors of something else, and settings that are not JSON of a record."""
    tensors = load(pseudo.record().to_bytes())
    for missing in ("mean", "text.values"):
        with pytest.raises(ConfigError):
            PseudoSamples.from_tensors({k: v for k, v in tensors.items() if k != missing})
    with pytest.raises(ConfigError):
        PseudoSamples.from_tensors({**tensors, "text.values": tensors["text.values"][::-1].copy()})
