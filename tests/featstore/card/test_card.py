"""The card and the page of a store: complete, kept, deterministic, safe against hostile names, drawn by a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from featstore.card import findings as finding
from featstore.card import survey as counting
from featstore.card.escape import bibtex, code, escape, plain
from featstore.card.explore import make_map
from featstore.card.findings import look
from featstore.card.licences import FAMILIES, LICENCES, family_of
from featstore.card.page import build_store_page, html
from featstore.card.pictures import thumbnails
from featstore.card.statement import NOTES_BEGIN, Statement, hub_licence, read_card
from featstore.card.statistics import measure_field
from featstore.card.survey import draw_rows, survey
from featstore.cli.main import main
from featstore.errors import ConfigError
from featstore.reading.store import FeatureStore
from featstore.writing.shard import text_column
from tests.conftest import ROOT
from tests.distill import browser
from tests.featstore import golden
from tests.featstore.stores import Array, field, make_columns, make_manifest, names_of, write_store
from tests.images import picture

SCRIPT = "<script>document.title='owned'</script>"  # a name that runs if it is not escaped
IMAGE = '"><img src=x onerror="document.title=`owned`">'
"""A name that leaves an attribute if it is not escaped."""
CONTROL = "a\x1b[31m\x00\u2028|`b`\n# no heading\u202e"
"""A name with an escape of terminals, ends of lines, and marks of Markdown."""
HOSTILE = (SCRIPT, IMAGE, CONTROL, "</script><b>bold</b> & co")

ROWS = 60


def groups(count: int, *, seed: int = 0) -> Array:
    """(count, 8): three groups far apart, by row."""
    generator = np.random.default_rng(seed)
    centres = 10 * generator.standard_normal((3, 8))
    return centres[np.arange(count) % 3] + generator.standard_normal((count, 8))


def hostile_store(path: Path) -> Path:
    """Three groups; every text from outside is hostile somewhere; rows 4 and 5 are skipped, 7 is a copy of 1."""
    manifest = make_manifest(
        num_rows=ROWS,
        shard_rows=16,
        fields={"cls": field(8, dtype="float32"), "grid2": field(2, 2, 3)},
    )
    source = manifest.source.model_copy(
        update={"class_names": (HOSTILE[0], HOSTILE[3]), "uri": f"/data/{IMAGE}"}
    )
    teacher = manifest.teachers["teacher"].model_copy(update={"name": SCRIPT, "licence": IMAGE})
    made = {SCRIPT: CONTROL}
    fields = {
        name: spec.model_copy(update={"meaning": HOSTILE[3]})
        for name, spec in manifest.fields.items()
    }
    changes = {
        "source": source,
        "teachers": {"teacher": teacher},
        "created_by": made,
        "fields": fields,
    }
    manifest = manifest.model_copy(update=changes)
    columns = make_columns(manifest, invalid=[4, 5])
    ids = [*HOSTILE, *names_of(ROWS)[4:]]
    columns["sample_id"] = text_column(ids)
    columns["fields/cls"] = np.stack([groups(ROWS), groups(ROWS, seed=1)], axis=1).astype(
        np.float32
    )
    columns["fields/cls"][[4, 5]] = 0
    columns["fields/cls"][7] = columns["fields/cls"][1]
    columns["content_sha256"][7] = columns["content_sha256"][1]
    return write_store(path, manifest, columns, reasons={4: SCRIPT, 5: CONTROL})


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See ``hostile_store``."""
    return hostile_store(tmp_path_factory.mktemp("hostile") / "store")


@pytest.fixture
def plain_store(tmp_path: Path) -> Path:
    """A small store of random rows."""
    manifest = make_manifest(num_rows=20)
    return write_store(tmp_path / "store", manifest, make_columns(manifest))


def front(card: Path) -> dict[str, Any]:
    """The front matter of a card."""
    _, text, _ = card.read_text().split("---\n", 2)
    values = yaml.safe_load(text)
    assert isinstance(values, dict)
    return values


# --- text from outside ---------------------------------------------------------------------------------------------


@given(st.text())
def test_texts_stay_in_their_line_and_cell(text: str) -> None:
    """Whatever a text holds: one line of printable characters, no tag, no cell of a table ended."""
    for shown in (plain(text), escape(text), code(text), bibtex(text)):
        assert "\n" not in shown
        assert shown.isprintable()
    assert not re.search(r"<[a-zA-Z/!]", escape(text))
    for shown in (escape(text), code(text)):
        assert not re.search(r"(?<!\\)\|", shown)
    inner = code(text)
    fence = re.match("`+", inner)
    assert fence is not None
    assert fence[0] not in inner[len(fence[0]) : -len(fence[0])].split()


def test_markdown_shows_text_as_it_is() -> None:
    """Marks are escaped where they would be marks."""
    assert (
        escape("a*b* [x](y) _c_ snake_case <i> $x$")
        == r"a\*b\* \[x\](y) \_c\_ snake_case &lt;i&gt; \$x\$"
    )
    assert code("a`b|c") == "``a`b\\|c``"
    assert bibtex("{A} & B_c #1 \\x") == r"\{A\} \& B\_c \#1 \textbackslash{}x"


# --- licences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["apache-2.0", "Apache 2.0"], {"license": "apache-2.0"}),
        (["MIT", "mit"], {"license": "mit"}),
        (["", "mit"], {"license": "unknown"}),
        (
            ["cc-by-nc-4.0", "apache-2.0"],
            {"license": "other", "license_name": "apache-2.0-and-cc-by-nc-4.0"},
        ),
        (["dinov3-license"] * 2, {"license": "other", "license_name": "dinov3-license"}),
        (["our own terms"] * 2, {"license": "other", "license_name": "our-own-terms"}),
    ],
)
def test_the_hub_gets_no_more_than_is_known(licences: list[str], expected: dict[str, str]) -> None:
    """One licence for all parts is named; two are another licence; one that is not known makes the whole unknown."""
    assert hub_licence(licences) == expected


def test_teachers_are_known_by_name() -> None:
    """Families that contain each other's marks are told apart; a name is a hint only where the library is known."""
    record = make_manifest().teachers["teacher"]
    for name, tag, expected in (
        ("vit_small_patch14_dinov2.lvd142m", "", "DINOv2"),
        ("vit_small_patch16_dinov3.lvd1689m", "", "DINOv3"),
        ("vit_base_patch16_siglip_224.webli", "", "SigLIP"),
        ("vit_base_patch16_siglip_224.v2_webli", "", "SigLIP 2"),
        ("ViT-B-32", "openai", "CLIP"),
        ("ViT-B-32", "laion2b_s34b_b79k", "OpenCLIP"),
        ("vit_tiny_patch16_224.augreg_in21k", "", "AugReg"),
        ("resnet50", "", None),
    ):
        found = family_of(record.model_copy(update={"name": name, "tag": tag}))
        assert (found and found.name) == expected, name
    other = record.model_copy(update={"library": "mine", "name": "dinov2"})
    assert family_of(other) is None
    assert {family.licence for family in FAMILIES} - {""} <= LICENCES.keys()


# --- the card ------------------------------------------------------------------------------------------------------


def test_the_front_matter_is_the_hubs(plain_store: Path) -> None:
    """The hub's own library reads it; what is stated is in it."""
    repocard = pytest.importorskip("huggingface_hub")
    said = ["--title", "Pets", "--author", "A. One", "--author", "B. Two", "--image-licence", "mit"]
    assert (
        main(
            [
                "card",
                str(plain_store),
                *said,
                "--teacher-licence",
                "MIT",
                "--homepage",
                "https://example.org/x",
            ]
        )
        == 0
    )
    card = repocard.DatasetCard.load(plain_store / "README.md")
    values = card.data.to_dict()
    assert values["pretty_name"] == "Pets"
    assert values["license"] == "mit"
    assert values["size_categories"] == ["n<1K"]
    assert values["viewer"] is False
    assert values["task_categories"] == ["image-feature-extraction", "image-classification"]
    assert values["featstore"]["fingerprint"] == FeatureStore.open(plain_store).fingerprint
    assert "By A. One, B. Two." in card.text
    assert "author = {A. One and B. Two}" in card.text


def test_what_was_stated_is_kept(plain_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run repeats nothing and writes the same bytes; an empty text takes back; notes by hand stay."""
    card = plain_store / "README.md"
    assert main(["card", str(plain_store), "--json"]) == 0
    unsaid = json.loads(capsys.readouterr().out)["not_stated"]
    assert [line.split(":")[0] for line in unsaid] == [
        "licence of teacher teacher", "licence of the images", "authors",
    ]  # fmt: skip
    assert front(card)["license"] == "unknown"
    assert "**Unknown: teacher `teacher`, images.**" in card.read_text()
    assert (
        main(["card", str(plain_store), "--author", "A: {x}", "--image-licence", "cc-by-nc-4.0"])
        == 0
    )
    card.write_text(
        card.read_text().replace(f"{NOTES_BEGIN}\n", f"{NOTES_BEGIN}\n## From us\n\nBlurred.\n")
    )
    assert main(["card", str(plain_store), "--teacher-licence", "teacher=apache-2.0"]) == 0
    text = card.read_text()
    assert "## From us\n\nBlurred.\n" in text
    assert "no commercial use" in text
    assert front(card)["license_name"] == "apache-2.0-and-cc-by-nc-4.0"
    assert read_card(card).statement.authors == ("A: {x}",)
    assert main(["card", str(plain_store)]) == 0
    assert card.read_text() == text
    capsys.readouterr()
    (plain_store / "model.sig").touch()
    assert main(["card", str(plain_store), "--image-licence", ""]) == 0
    assert front(card)["license"] == "unknown"
    assert "sign the store again" in capsys.readouterr().out


@pytest.mark.slow
def test_a_card_by_somebody_else_is_left_alone(
    plain_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a README without our mark nor one whose mark cannot be read is overwritten; nothing is half written."""
    card = plain_store / "README.md"
    for text, expected in (
        ("# Mine\n", "was not written by"),
        ("---\nlicense: mit\nfeatstore: 3\n---\n", "cannot be read"),
        (f"---\nx: {'[' * 1200}\nfeatstore:\n---\n", "cannot be read"),
        ("---\nlicense: mit\nfeatstore: {statement: {authors: 4}}\n---\n", "cannot be read"),
    ):
        card.write_text(text)
        assert main(["card", str(plain_store)]) == 2
        assert expected in capsys.readouterr().err
        assert card.read_text() == text
    card.unlink()
    card.symlink_to("/etc/hostname")
    assert main(["card", str(plain_store)]) == 2
    for wrong in (["--homepage", "javascript:x"], ["--teacher-licence", "nobody=mit"]):
        assert (
            main(["card", str(plain_store), "--out", str(card.with_name("other.md")), *wrong]) == 2
        )
    assert not card.with_name("other.md").exists()


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_the_examples_run_as_they_stand(container: str, tmp_path: Path) -> None:
    """Each block of Python of a card runs in the folder of the card; the card depends on the store alone."""
    store = tmp_path / "store"
    shutil.copytree(golden.FOLDER / f"store_v1_{container}", store)
    assert main(["card", str(store)]) == 0
    text = (store / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    checked = "assert rows.shape[:2] == (2, 2) and len(set(ids)) == 2, rows.shape\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{blocks[0]}\n{checked}\n{blocks[1]}"],
        cwd=store, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in golden.fields_of(container):  # type: ignore[arg-type]
        assert f"| `{name}` |" in text
    assert "| empty file | 1 |" in text
    assert str(tmp_path) not in text


def test_the_card_of_a_hostile_store(hostile: Path, tmp_path: Path) -> None:
    """No markup of theirs: not in Markdown, where the hub would render it, and not in the front matter."""
    card = tmp_path / "card.md"
    assert (
        main(
            ["card", str(hostile), "--out", str(card), "--image-licence", IMAGE, "--title", SCRIPT]
        )
        == 0
    )
    text = card.read_text()
    body = text.split("---\n", 2)[2]
    shown = re.sub(r"(`+).*?\1", "", re.sub(r"```.*?```", "", body, flags=re.DOTALL))
    assert not re.search(r"<(?!!--|https://)", shown)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\n# no heading" not in text
    assert front(card)["featstore"]["statement"]["title"] == SCRIPT
    assert front(card)["license"] == "other"
    assert not (hostile / "README.md").exists()
    assert main(["card", str(hostile), "--out", str(card)]) == 0
    assert card.read_text() == text


def test_versions_are_listed(tmp_path: Path) -> None:
    """A store that rows were appended to tells its earlier versions."""
    manifest = make_manifest()
    earlier = {
        "version": 1,
        "created": "2026-01-02T00:00:00+00:00",
        "rows": 8,
        "fingerprint": "cd" * 32,
    }
    manifest = type(manifest).model_validate(manifest.model_dump() | {"history": [earlier]})
    store = write_store(tmp_path / "store", manifest, make_columns(manifest))
    assert main(["card", str(store)]) == 0
    text = (store / "README.md").read_text()
    assert f"| 1 | 2026-01-02T00:00:00+00:00 | 8 | `{'cd' * 32}` |" in text
    assert front(store / "README.md")["featstore"]["version"] == 2
    assert "Feature store, version 2, 20 images" in text


# --- numbers -------------------------------------------------------------------------------------------------------


def test_counts_of_a_store(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from every shard, or from some, and then said so; skips come from the ledger."""
    store = FeatureStore.open(hostile)
    whole = survey(store)
    assert whole.whole
    assert (whole.valid_rows, whole.invalid_rows) == (ROWS - 2, 2)
    assert sum(whole.field_bytes.values()) == whole.bytes
    labels = store.labels
    assert whole.class_counts == {key: int((labels == key).sum()) for key in whole.class_counts}
    assert whole.labelled_rows == (labels >= 0).sum()
    monkeypatch.setattr(counting, "MOST_SHARDS", 2)
    some = survey(store)
    assert not some.whole
    assert len(some.entries) == 2
    assert (some.valid_rows, some.bytes) == (whole.valid_rows, whole.bytes)
    assert some.labelled_rows == pytest.approx(whole.labelled_rows, rel=0.4)


def test_a_sample_is_of_valid_rows(hostile: Path) -> None:
    """With their ids, labels and hashes; the same for the same seed; all of them where there are no more."""
    store = FeatureStore.open(hostile)
    every = draw_rows(store, 1000)
    assert every.whole
    assert every.rows.tolist() == np.flatnonzero(store.valid).tolist()
    some = draw_rows(store, 20, seed=3)
    assert not some.whole
    assert 15 <= len(some.rows) <= 20
    assert (np.diff(some.rows) > 0).all()
    assert some.ids == [store.sample_ids[row] for row in some.rows]
    assert (some.labels == store.labels[some.rows]).all()
    assert (some.hashes == store.content_sha256[some.rows]).all()
    assert draw_rows(store, 20, seed=3).ids == some.ids


def test_statistics_against_their_formulas(tmp_path: Path) -> None:
    """Effective dimensions of known variances, norms, a dead channel, and vectors that are not finite."""
    manifest = make_manifest(
        num_rows=64, shard_rows=32, views=1, fields={"cls": field(6, dtype="float32")}
    )
    columns = make_columns(manifest)
    signs = np.array(
        [[(-1) ** (row >> axis) for axis in range(4)] for row in range(64)], dtype=np.float32
    )
    values = np.zeros((64, 6), dtype=np.float32)
    values[:, :4] = signs * [2, 2, 1, 1]  # orthogonal columns of variance 4, 4, 1, 1
    values[:, 4] = 7
    columns["fields/cls"] = values[:, None]
    store = FeatureStore.open(write_store(tmp_path / "store", manifest, columns))
    found = measure_field(store, "cls", draw_rows(store, 64))
    assert found is not None
    shares = np.array([4, 4, 1, 1]) / 10
    assert found.participation == pytest.approx(10**2 / (16 + 16 + 1 + 1))
    assert found.entropy == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert found.for_90 == 3
    assert found.dead.tolist() == [4, 5]
    assert found.spectrum[:4] == pytest.approx([1, 1, 0.5, 0.5])
    assert found.norms == pytest.approx(np.full(64, np.sqrt(10 + 49)))
    units = values / np.sqrt(59)
    cosine = units @ units.T
    assert found.mean_cosine == pytest.approx(cosine[~np.eye(64, dtype=bool)].mean(), abs=1e-6)


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """Stores of others may hold them: counted, left out of statistics and map, and said on the page."""
    manifest = make_manifest(num_rows=24, views=1, fields={"cls": field(6, dtype="float32")})
    columns = make_columns(manifest)
    columns["fields/cls"][10:] = np.random.default_rng(0).standard_normal((14, 1, 6)) * 1e37
    columns["fields/cls"][3] = np.nan
    columns["fields/cls"][4, 0, 2] = np.inf
    store = FeatureStore.open(write_store(tmp_path / "store", manifest, columns))
    found = measure_field(store, "cls", draw_rows(store, 64))
    assert found is not None
    assert (found.vectors, found.not_finite) == (22, 2)
    assert np.isfinite(found.norms).all()
    laid_out = make_map(store, "cls", draw_rows(store, 64))
    assert laid_out is not None
    assert len(laid_out.points) == 22
    assert np.isfinite(laid_out.points).all()
    page = build_store_page(look(store), Statement())
    assert "NaN or infinity in the sample: cls 2" in page.finding


def test_neighbours_against_all_cosines(hostile: Path) -> None:
    """Nearest first, by the cosine after the mean was taken off; a copy is the nearest; groups stay together."""
    store = FeatureStore.open(hostile)
    found = make_map(store, "cls", draw_rows(store, 1000))
    assert found is not None
    features = store.gather("cls", found.sample.rows, views=[0])[:, 0].astype(np.float64)
    features -= features.mean(0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    cosine = features @ features.T
    np.fill_diagonal(cosine, -2)
    assert found.cosines == pytest.approx(-np.sort(-cosine, axis=1)[:, :12], abs=1e-5)
    place = {int(row): at for at, row in enumerate(found.sample.rows)}
    assert found.neighbours[place[7], 0] == place[1]
    own = found.sample.rows % 3
    own[place[7]] = 1
    distance = np.linalg.norm(found.points[:, None] - found.points[None], axis=2) + 1e9 * np.eye(
        len(own)
    )
    assert (own[distance.argmin(1)] == own).all()


# --- the page ------------------------------------------------------------------------------------------------------


def make_page(store: Path, out: Path, *more: str) -> str:
    """The page of a store, by the command."""
    assert (
        main(["card", str(store), "--out", str(out.with_suffix(".md")), "--html", str(out), *more])
        == 0
    )
    return out.read_text()


def test_the_page_is_one_file(hostile: Path, tmp_path: Path) -> None:
    """Nothing from elsewhere, no name as markup, the same when made again, and nothing put into the store."""
    before = sorted(hostile.rglob("*"))
    page = make_page(hostile, tmp_path / "page.html")
    frame = re.sub(r'<script id="library".*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", frame)
    assert "default-src 'none'" in page
    for mark in ("<script>document", "<img src=x", "<b>bold", "\x1b"):
        assert mark not in frame
    for heading in (
        "Map of the images",
        "Features",
        "Classes",
        "Duplicates",
        "Extraction",
        "Size",
        "Origin and licences",
    ):
        assert f">{heading}</h2>" in page, heading
    assert "1 group of identical files" in page
    assert make_page(hostile, tmp_path / "again.html") == page
    assert not re.search(r"\b1 (shards|images|views|classes|rows)\b", page)
    assert sorted(hostile.rglob("*")) == before


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_every_kind_of_field_has_its_place(
    container: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """int8, top-k, ragged, text, grids: floats are measured, the others named; numbers come as JSON too."""
    store = golden.FOLDER / f"store_v1_{container}"
    page = make_page(store, tmp_path / "page.html", "--json", "--field", "grid2")
    values = json.loads(capsys.readouterr().out)
    assert {"cls", "grid2", "bits", "codes_row"} <= values["fields"].keys()
    assert "logits" not in values["fields"]
    assert values["rows_skipped"] == 1
    assert "no floating point vectors: caption, ids, logits, mask, points" in page
    assert "by grid2" in page
    assert "relative error" in page


def test_copies_are_found_in_a_sample_too(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether all images are compared or those of the map: the same groups and pairs, ids as they are."""
    store = FeatureStore.open(hostile)
    whole = look(store).duplicates
    monkeypatch.setattr(finding, "MOST_PRODUCTS", 0)
    monkeypatch.setattr(finding, "MOST_HASHED", 0)
    some = look(store).duplicates
    assert whole is not None
    assert some is not None
    copy = store.sample_ids[7]
    assert whole.exact == some.exact == [[IMAGE, copy]]
    assert (IMAGE, copy, pytest.approx(1)) in whole.near
    assert {pair[:2] for pair in some.near} == {pair[:2] for pair in whole.near}
    assert some.cosines == pytest.approx(whole.cosines, abs=1e-5)
    assert (whole.whole, some.whole) == (True, False)


def test_a_sample_is_said_to_be_one(hostile: Path) -> None:
    """Of a larger store, the page says what it was made from."""
    store = FeatureStore.open(hostile)
    page = build_store_page(look(store, points=20), Statement())
    explorer = page.sections[0].blocks[0]
    assert re.match(r"\d\d images of 58, by cls", explorer.title)  # type: ignore[attr-defined]
    assert "A sample of" in page.sections[1].lead


def test_few_rows_and_no_vectors(tmp_path: Path) -> None:
    """Two images, unlabelled; a store of masks alone; one without a usable row is refused."""
    small = make_manifest(num_rows=2, labels=False, views=1)
    store = FeatureStore.open(write_store(tmp_path / "small", small, make_columns(small)))
    assert "Map of the images" in html(build_store_page(look(store), Statement()))
    mask = field(3, 3).model_copy(update={"dtype": "bool"})
    masks = make_manifest(num_rows=6, fields={"mask": mask})
    store = FeatureStore.open(write_store(tmp_path / "masks", masks, make_columns(masks)))
    page = html(build_store_page(look(store), Statement()))
    assert "without a field of floating point vectors" in page
    assert "Map of the images" not in page
    none = make_manifest(num_rows=4)
    path = write_store(tmp_path / "none", none, make_columns(none, invalid=range(4)))
    with pytest.raises(ConfigError):
        look(FeatureStore.open(path))
    with pytest.raises(ConfigError, match="grid2"):
        look(FeatureStore.open(tmp_path / "small"), field="mask")


def test_pictures_are_those_that_were_extracted(tmp_path: Path) -> None:
    """Of files with the stored content; an id that leads out of the folder, a pipe and another content give none."""
    from hashlib import sha256

    folder = tmp_path / "images"
    folder.mkdir()
    data = picture(3, "PNG")
    for name in ("good.png", "other.png"):
        (folder / name).write_bytes(data)
    (tmp_path / "outside.png").write_bytes(data)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    os.mkfifo(folder / "pipe.png")
    ids = [
        "good.png",
        "other.png",
        "../outside.png",
        "link.png",
        "pipe.png",
        "missing.png",
        "a\x00.png",
    ]
    manifest = make_manifest(num_rows=len(ids))
    columns = make_columns(manifest)
    columns["sample_id"] = text_column(ids)
    columns["content_sha256"][:] = np.frombuffer(sha256(data).digest(), np.uint8)
    columns["content_sha256"][1] = 1
    store = FeatureStore.open(write_store(tmp_path / "store", manifest, columns))
    found = thumbnails(folder, manifest, draw_rows(store, 10))
    assert found[0].startswith("data:image/jpeg;base64,")
    assert found[1:] == [""] * 6
    with pytest.raises(ConfigError, match=r"\b7\b"):
        thumbnails(tmp_path / "store", manifest, draw_rows(store, 10))


def test_the_page_names_the_extra(
    hostile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its libraries, the page says what to install, and the card needs none of them."""
    for name in [
        name
        for name in sys.modules
        if name.startswith(("featstore.card.page", "featstore.display"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("jinja2", "plotly", "sklearn"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["card", str(hostile), "--html", "x.html"]) == 2
    assert "pip install 'featstore-distill[card]'" in capsys.readouterr().err


# --- a real browser ------------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(
    browser.missing(), reason=f"no Chromium with its driver; to run this: {browser.INSTALL}"
)

TYPE = "const e = document.querySelector('.atlas input'); e.value = {}; e.dispatchEvent(new Event('input'))"


@pytest.mark.slow
@needs_browser
def test_a_browser_opens_the_page(hostile: Path, tmp_path: Path) -> None:
    """From disk: all is drawn, nothing is fetched, no name runs, search and click work, nothing sticks out."""
    page = tmp_path / "page.html"
    make_page(hostile, page)
    with browser.browser(tmp_path / "profile") as window:
        for width in (1280, 390):
            window.resize(width)
            window.open(page)
            drawn = window.run(
                "return [...document.querySelectorAll('.drawing')].map(d => !!d.querySelector('.main-svg'))"
            )
            assert len(drawn) >= 7
            assert all(drawn)
            wide, there = window.run("return [document.documentElement.scrollWidth, innerWidth]")
            assert wide <= there == width
            inside = """return [...document.querySelectorAll('.drawing .main-svg')].every(drawn =>
                drawn.getBoundingClientRect().right <= drawn.closest('figure').getBoundingClientRect().right)"""
            assert window.run(inside)
            window.run(TYPE.format(json.dumps("FOLDER/9")))
            assert (
                window.run("return document.querySelector('.status').textContent")
                == "1 of 58 images"
            )
            assert window.run(
                "return document.querySelector('.hits .id').firstChild.textContent"
            ).endswith("folder/9.png")
            window.run(TYPE.format(json.dumps("<script>")))
            assert window.run("return document.querySelectorAll('.hits li').length") > 0
            rings = "return document.querySelector('.atlas .drawing').data.slice(-3).map(t => t.x.length)"
            assert window.run(rings)[0] > 0
            # A click on the point of the sample whose copy is in the store.
            window.run("""
                const place = document.querySelector('.atlas .drawing');
                place.emit('plotly_click', { points: [{ curveNumber: 0, pointNumber: 1 }] });
                return 0;
            """)
            assert window.run("return document.querySelector('.chosen h4').textContent") == IMAGE
            near = window.run(
                "return [...document.querySelectorAll('.chosen li .cosine')].map(e => e.textContent)"
            )
            assert len(near) == 12
            assert near[0] == "1.000"
            window.run("document.querySelector('.chosen li button').click(); return 0")
            assert window.run("return document.querySelector('.chosen h4').textContent").endswith(
                "7.png"
            )
            assert window.run(rings)[1:] == [12, 1]
            assert window.run("return document.title") != "owned"
            assert (
                window.run("return document.querySelectorAll('img[onerror], main b').length") == 0
            )
            assert window.console() == []
            fetched = [address for address in window.requests() if not address.startswith("data:")]
            assert fetched == [page.as_uri()]
        window.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 50_000
