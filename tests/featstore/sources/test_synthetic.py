"""Statistics of images by hand, the command that writes them, and sources of pseudo-samples."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featstore.cli.main import main
from featstore.errors import ConfigError, SourceError
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig
from featstore.extraction.run import run
from featstore.format.ids import content_sha256
from featstore.reading.stored_pictures import images_of
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from featstore.sources.statistics import measure_images
from featstore.sources.synthetic import read_record
from tests import images, pseudo


def draw(folder: Path, *, count: int = 60, colour: bool = False) -> Path:
    """Images of 4 x 4 pixels, two classes with different means and directions."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(pseudo.CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        direction = rng.normal(scale=10, size=16)
        for row in range(count):
            grey = 100 + 50 * number + rng.normal() * direction + rng.normal(size=16)
            picture = np.repeat(grey.reshape(4, 4, 1), 3, axis=2).clip(0, 255)
            picture[..., 2] += 20 * colour
            data = images.encode(picture.astype(np.uint8))
            (folder / name / f"{row:03d}.png").write_bytes(data)
    return folder


def pixels(folder: Path, name: str) -> np.ndarray:  # type: ignore[type-arg]
    """(n, 16) numbers of a class."""
    files = sorted((folder / name).iterdir())
    return np.stack([np.asarray(Image.open(file))[..., 0].ravel() for file in files]).astype(float)


def folder_source(folder: Path) -> SourceConfig:
    return SourceConfig(kind="folder", path=str(folder))


def test_statistics_by_hand(tmp_path: Path) -> None:
    """Mean and variance are exact; a factor of full rank is the whole covariance, of rank 1 its first direction."""
    folder = draw(tmp_path / "images")
    source = open_source(folder_source(folder))
    moments, skipped = measure_images(source, side=4)
    assert (moments.kind, moments.channels, moments.counts, skipped) == ("moments", 1, (60, 60), [])
    for number, name in enumerate(pseudo.CLASSES):
        values = pixels(folder, name)
        np.testing.assert_allclose(moments.mean[number], values.mean(0), rtol=1e-6)
        np.testing.assert_allclose(moments.deviation[number], values.std(0), rtol=1e-5)
        full, _ = measure_images(source, side=4, rank=16, least=0)
        covariance = np.cov(values.T, bias=True)
        found = full.factor[number].T @ full.factor[number]
        np.testing.assert_allclose(found, covariance, atol=1e-3)
        one, _ = measure_images(source, side=4, rank=1)
        power, directions = np.linalg.eigh(covariance)
        first = directions[:, -1] * np.sqrt(power[-1])
        np.testing.assert_allclose(np.abs(one.factor[number, 0]), np.abs(first), atol=1e-3)
        # Each number keeps its whole variance.
        total = one.factor[number, 0] ** 2 + one.deviation[number] ** 2
        np.testing.assert_allclose(total, values.var(0), rtol=1e-4)


def test_all_images_together_and_colours(tmp_path: Path) -> None:
    """Without classes there is one mean; pictures that are not grey keep three channels."""
    source = open_source(folder_source(draw(tmp_path / "images", colour=True)))
    record, _ = measure_images(source, side=4, per_class=False)
    assert (record.classes, record.counts, record.channels) == ((), (120,), 3)
    assert record.mean.shape == (1, 48)


def test_few_images_are_refused(tmp_path: Path) -> None:
    """Fewer than the documented number, also for the rank; the error names classes and counts."""
    source = open_source(folder_source(draw(tmp_path / "images", count=40)))
    with pytest.raises(ConfigError, match=r"50.*cat \(40\).*--allow-few"):
        measure_images(source, side=4)
    assert measure_images(source, side=4, least=0)[0].counts == (40, 40)
    assert measure_images(source, side=4, per_class=False)[0].counts == (80,)
    with pytest.raises(ConfigError, match="90"):
        measure_images(source, side=4, per_class=False, rank=9)


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    """A damaged image is named; no labels, a side or a rank out of range: errors."""
    folder = draw(tmp_path / "images", count=51)
    (folder / "cat" / "000.png").write_bytes(b"x")
    source = open_source(folder_source(folder))
    record, skipped = measure_images(source, side=4)
    assert record.counts == (50, 51)
    assert len(skipped) == 1
    assert skipped[0].startswith("cat/000.png")
    for side, rank in ((0, 0), (1000, 0), (4, -1)):
        with pytest.raises(ConfigError):
            measure_images(source, side=side, rank=rank)
    bare = open_source(SourceConfig(kind="folder", path=str(folder), labels_from="none"))
    with pytest.raises(ConfigError, match="--overall"):
        measure_images(bare, side=4)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Writes a record once, says what it may reveal, and lists images that were left out."""
    folder, out = draw(tmp_path / "images"), tmp_path / "record.safetensors"
    (folder / "cat" / "bad.png").write_bytes(b"x")
    words = ["statistics", str(folder), str(out), "--size", "4", "--rank", "2"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "reveal" in printed.out
    assert "cat/bad.png" in printed.err
    assert read_record(out)[0].rank == 2
    assert main(words) == 2  # exists
    assert main(["statistics", "noise", str(tmp_path / "noise"), "--size", "5", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["kind"], described["size"], described["images"]) == ("noise", [5, 5], [0])


def test_a_source_of_pseudo_samples(tmp_path: Path) -> None:
    """Ids are kind, class and seed; two ranges of seeds share pictures where they overlap, and nothing else."""
    path = str(pseudo.write_record(tmp_path))
    first = open_source(SourceConfig(kind="synthetic", path=path, samples=3))
    other = open_source(SourceConfig(kind="synthetic", path=path, samples=3, first_seed=2))
    assert first.sample_ids == [f"covariance/{c}/{s:08d}" for c in pseudo.CLASSES for s in range(3)]
    assert first.labels is not None
    assert first.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len({first.read(row) for row in range(6)}) == 6
    assert first.read(2) == other.read(0)
    assert Image.open(io.BytesIO(first.read(0))).size == (5, 6)
    part = open_source(SourceConfig(kind="synthetic", path=path, samples=3, include=["*/dog/*"]))
    assert part.read(0) == first.read(3)
    assert part.artefacts["pseudo_samples"][1] == Path(path).read_bytes()


def test_settings_and_files_that_do_not_fit(tmp_path: Path) -> None:
    """A number of samples, and nothing in its place; a file that is no record, or is not there."""
    path = pseudo.write_record(tmp_path)
    for samples, first_seed in ((0, 0), (-1, 0), (2, -1)):
        with pytest.raises(ConfigError, match="samples"):
            SourceConfig(kind="synthetic", path=str(path), samples=samples, first_seed=first_seed)
    with pytest.raises(ConfigError, match="samples"):
        SourceConfig(kind="folder", path=str(tmp_path), samples=3)
    (tmp_path / "bad").write_bytes(path.read_bytes()[:-8])
    (tmp_path / "text").write_bytes(b"hello")
    for name in ("bad", "text", "missing"):
        with pytest.raises(SourceError, match=name):
            open_source(SourceConfig(kind="synthetic", path=str(tmp_path / name), samples=1))
    with pytest.raises(ConfigError, match="cow"):  # names of another teacher's classes
        open_source(
            SourceConfig(kind="synthetic", path=str(path), samples=1, classes=["cow", "horse"])
        )


def test_dry_run_and_growth(tmp_path: Path) -> None:
    """A dry run writes nothing; further seeds are appended behind the rows that are there, which stay."""
    path = pseudo.write_record(tmp_path)
    store = pseudo.extract(tmp_path)
    before = store.gather("logits", np.arange(24)).tobytes()
    config = ExtractConfig(
        source=SourceConfig(kind="synthetic", path=str(path), samples=12),
        teacher=TeacherConfig(
            library="python", name=f"{tmp_path / 'net.py'}:make", precision="fp32"
        ),
        store=StoreConfig(path=str(tmp_path / "dry"), fields=["logits"]),
        dry_run=True,
        workers=0,
    )
    run(config, progress=False)
    assert not (tmp_path / "dry").exists()
    grown = pseudo.extract(tmp_path, append=True, source={"samples": 14})
    assert (grown.num_rows, grown.manifest.version) == (28, 2)
    assert grown.gather("logits", np.arange(24)).tobytes() == before
    source = images_of(grown)
    assert [content_sha256(source.read(row)) for row in range(28)] == [
        row.tobytes() for row in grown.content_sha256
    ]


def test_noise_with_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every class by its name; statistics of images have classes of their own."""
    out = tmp_path / "noise.safetensors"
    words = ["statistics", "noise", str(out), "--size", "4", "--classes", "cat", "dog", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["cat", "dog"]
    source = open_source(SourceConfig(kind="synthetic", path=str(out), samples=2, first_seed=3))
    assert list(source.sample_ids) == [
        "noise/cat/00000003", "noise/cat/00000004", "noise/dog/00000003", "noise/dog/00000004",
    ]  # fmt: skip
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert main(["statistics", "digits", str(tmp_path / "x"), "--classes", "cat"]) != 0
    assert "--classes cat" in capsys.readouterr().err
