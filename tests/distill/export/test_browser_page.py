"""The page that runs a model, in headless Chromium: a real file is chosen, and the answer is PyTorch's."""

import json
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from distill.config import StudentConfig
from distill.export import browser as page
from distill.export import onnx_model, parity, preprocessing, program
from distill.student.model import Student, build_student
from featstore.errors import ConfigError
from featstore.format.views import Interpolation, ViewSet, canonical_box, cut
from featstore.sources.decode import decode_image
from featstore.sources.load import ViewRule
from tests.distill.browser import INSTALL, Browser, browser, missing

HOSTILE = "</script><script>document.title='owned'</script>"
NAMES = ["cat", HOSTILE, "<b>dog</b>", 'a "quoted" one', "e", "f"]
RULE = ViewRule(ViewSet(), (40, 40), 0.9, "center", "bicubic")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Student]:
    """The page of a random student of 32 x 32 pixels, and the student."""
    if missing():
        pytest.skip(f"no browser: {INSTALL}")
    try:
        runtime = page.web_runtime()
    except ConfigError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("export")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = build_student(StudentConfig(name="test_efficientnet", image_size=32), len(NAMES))
    student.model.eval()
    spec = preprocessing.input_spec(student, baked=False, uint8=False)
    onnx_model.write_onnx(folder, program.trace(student.model, spec), spec)
    pixels = preprocessing.reference_pixels(spec, RULE)
    logits = parity.torch_runner(student)(pixels)[0].tolist()
    preprocessing.write_preprocessing(
        folder, spec, RULE, label_names=NAMES, logits={"onnx": logits}
    )
    page.write_browser_page(folder, title="a <b>student</b>", names=["onnx"], runtime=runtime)
    return folder, student


@pytest.fixture(scope="module")
def window(exported: tuple[Path, Student]) -> Iterator[Browser]:
    """The page, opened from disk."""
    with (
        tempfile.TemporaryDirectory(prefix="profile") as profile,
        browser(Path(profile)) as opened,
    ):
        opened.open(exported[0] / page.NAME)
        yield opened


def photo(path: Path, size: tuple[int, int] = (97, 61), **options: Any) -> Path:
    """A smooth picture, as a camera would save it."""
    noise = np.random.default_rng(1).integers(0, 256, (7, 9, 3), np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


def answer(window: Browser, path: Path) -> dict[str, Any]:
    """Choose a file through the page's input, and wait for the answer."""
    look = "return document.documentElement.dataset.answer || '{\"number\": 0}'"
    before = json.loads(window.run(look))["number"]
    found = window.call("/element", {"using": "css selector", "value": "#file"})
    window.call(f"/element/{next(iter(found.values()))}/value", {"text": str(path)})
    for _ in range(300):
        values: dict[str, Any] = json.loads(window.run(look))
        if values["number"] > before:
            return values
        time.sleep(0.1)
    raise TimeoutError(f"{path}: no answer; console: {window.console()}")


def expected(path: Path, student: Student) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The region as Pillow cuts it, (H, W, 3), and PyTorch's probabilities."""
    image = decode_image(path.read_bytes())
    box = canonical_box(
        *image.size, size=RULE.size, crop_pct=RULE.crop_pct, crop_mode=RULE.crop_mode
    )
    shown = np.asarray(
        cut(image, box, size=(32, 32), interpolation=RULE.interpolation, mirrored=False)
    )
    logits = parity.torch_runner(student)(np.ascontiguousarray(shown.transpose(2, 0, 1)[None]))
    return shown, torch.from_numpy(logits)[0].softmax(0).numpy()


@pytest.mark.slow
def test_a_chosen_picture_is_answered_as_by_pytorch(
    exported: tuple[Path, Student], window: Browser, tmp_path: Path
) -> None:
    """Of a PNG every byte of the crop is Pillow's, of a tall one up to the order of its passes; a JPEG is upright."""
    files = [photo(tmp_path / "a.png"), photo(tmp_path / "tall.png", (50, 180))]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    files.append(photo(tmp_path / "b.jpg", quality=95, exif=exif))
    for path, most_levels, most in zip(files, (0, 1, 3), (1e-4, 0.01, 0.01), strict=True):
        found = answer(window, path)
        assert found.get("error") is None
        crop, probabilities = expected(path, exported[1])
        seen = np.array(found["crop"]).reshape(crop.shape)
        assert np.abs(seen - crop.astype(int)).max() <= most_levels, path.name
        np.testing.assert_allclose(found["probabilities"], probabilities, atol=most)
        assert np.argmax(found["logits"]) == probabilities.argmax()
        assert found["ms"] > 0
        top = window.run(
            "return [...document.querySelectorAll('#answers li')].map(li => li.innerText)"
        )
        assert len(top) == 5
        assert NAMES[int(probabilities.argmax())] in top[0]
    assert window.run("return document.getElementById('time').textContent").endswith(" ms")
    window.run("document.getElementById('measure').click()")
    for _ in range(100):
        text = window.run("return document.getElementById('many').textContent")
        if text:
            break
        time.sleep(0.1)
    assert text.startswith("30 runs: median ")


@pytest.mark.slow
def test_the_page_checks_itself(window: Browser) -> None:
    """Of the picture that came along the answer is known: only arithmetic differs."""
    (found,) = json.loads(window.run("return document.documentElement.dataset.check"))
    assert found["far"] < 1e-3


@pytest.mark.slow
def test_what_is_no_picture_is_refused(window: Browser, tmp_path: Path) -> None:
    """On the page, in a sentence; the next picture works."""
    (tmp_path / "notes.jpg").write_text("not a picture")
    found = answer(window, tmp_path / "notes.jpg")
    assert "notes.jpg: this browser cannot decode the image" in found["error"]
    assert window.run("return document.getElementById('result').hidden")
    assert window.run("return document.getElementById('status').classList.contains('wrong')")
    assert answer(window, photo(tmp_path / "a.png")).get("error") is None
    assert not window.run("return document.getElementById('result').hidden")


def test_the_page_is_alone_and_fits(window: Browser, exported: tuple[Path, Student]) -> None:
    """Nothing but the file is asked for, names from outside are text, and a phone needs no sideways scrolling."""
    own = (exported[0] / page.NAME).absolute().as_uri()
    asked = [
        address
        for address in window.requests()
        if not address.startswith(("blob:", "data:", "chrome"))
    ]
    assert set(asked) <= {own}
    assert window.console() == []
    assert window.run("return document.title") == "a <b>student</b>"
    for width in (390, 1280):
        window.resize(width)
        assert window.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_resizing_is_pillows(window: Browser, interpolation: Interpolation) -> None:
    """To the last bit, shrinking and growing, with a box of fractions."""
    draw = np.random.default_rng(0)
    for size, box, out in (((31, 23), (1.3, 0.7, 28.9, 22.1), (8, 9)), ((5, 6), (0, 0, 5, 6), (12, 6))):  # fmt: skip
        pixels = draw.integers(0, 256, (size[1], size[0], 3), np.uint8)
        theirs = np.asarray(
            cut(Image.fromarray(pixels), box, size=out, interpolation=interpolation, mirrored=False)
        )
        picture = f"{{width: {size[0]}, height: {size[1]}, data: Uint8ClampedArray.from({pixels.ravel().tolist()})}}"
        ours = window.run(
            f"return [...Preprocess.resize({picture}, {list(box)}, {out[1]}, {out[0]}, '{interpolation}').data]"
        )
        np.testing.assert_array_equal(np.array(ours).reshape(theirs.shape), theirs)


@pytest.mark.parametrize(
    ("size", "pct", "mode"),
    [((40, 40), 0.875, "center"), ((40, 40), 1.0, "squash"), ((32, 48), 0.9, "center")],
)
def test_the_region_is_the_teachers(
    window: Browser, size: tuple[int, int], pct: float, mode: Any
) -> None:
    """For pictures of many shapes."""
    rule = {"reference_height": size[0], "reference_width": size[1], "crop_pct": pct, "crop_mode": mode}  # fmt: skip
    shapes = [(97, 61), (61, 97), (40, 40), (33, 400), (1024, 767), (17, 12)]
    ours = window.run(
        f"return {json.dumps(shapes)}.map(([w, h]) => Preprocess.box(w, h, {json.dumps(rule)}))"
    )
    theirs = [
        canonical_box(width, height, size=size, crop_pct=pct, crop_mode=mode)
        for width, height in shapes
    ]
    np.testing.assert_allclose(ours, theirs, rtol=1e-15)


def test_runtimes_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file, another package, a changed tarball, no npm: each is said; nothing is left behind."""
    with pytest.raises(ConfigError, match=r"--browser_runtime.*gone.tgz"):
        page.web_runtime(str(tmp_path / "gone.tgz"))
    other = tmp_path / "other"
    for name in (page.CODE, page.WASM):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes(b"x")
    (other / "package.json").write_text('{"name": "left-pad", "version": "1.0.0"}')
    with pytest.raises(ConfigError, match="'left-pad'"):
        page.web_runtime(str(other))
    (other / "package.json").write_text(f'{{"name": "{page.PACKAGE}", "version": "9.9.9"}}')
    assert page.web_runtime(str(other)).version == "9.9.9"
    with tarfile.open(tmp_path / "packed.tgz", "w:gz") as archive:
        archive.add(other / "package.json", "package/package.json")
    with pytest.raises(ConfigError, match="dist/ort"):
        page.web_runtime(str(tmp_path / "packed.tgz"))

    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError):
        page.web_runtime()
    cached = page.runtime_folder() / f"{page.PACKAGE}-{page.VERSION}.tgz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes((tmp_path / "packed.tgz").read_bytes())
    with pytest.raises(ConfigError, match="SHA-512"):
        page.web_runtime()
