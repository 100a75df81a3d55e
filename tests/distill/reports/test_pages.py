"""Pages of made-up runs: complete, self-contained, safe against hostile names, and drawn by a real browser."""

import base64
import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
import pytest

from distill.measures import score
from distill.measures.score import Measure
from distill.reports import comparison, report, run_page, tables
from distill.reports.run_files import find_baseline, find_runs, read_run
from featstore.display import style
from featstore.display.feature_map import embed
from featstore.display.parts import Page, Section, Table
from featstore.display.render import render
from featstore.errors import ConfigError
from tests.distill import browser
from tests.distill.finished import HOSTILE, HOSTILE_IMAGE, finished_run


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT with three methods, two seeds each, and all pages; every name from outside is hostile somewhere."""
    out = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        finished_run(out, "labels", seed, skill=1.0, ids=[HOSTILE, HOSTILE_IMAGE])
        finished_run(out, "kd", seed, skill=2.0, ids=[HOSTILE, HOSTILE_IMAGE])
        finished_run(out, "customkd", seed, skill=4.0, ids=[HOSTILE, HOSTILE_IMAGE])
    assert report.rebuild(out)[-1] == out / "report.html"
    return out


def specs(page: str) -> list[dict[str, dict[str, object]]]:
    """The figures of a page as plotly will get them."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return [json.loads(spec) for spec in found]


# --- text from outside ---------------------------------------------------------------------------------------------


def test_a_label_is_shown_as_it_is() -> None:
    """plotly reads some markup in texts; long names lose their middle, control characters become spaces."""
    assert style.label("<b>x</b> & y") == "&lt;b&gt;x&lt;/b&gt; &amp; y"
    assert style.label("a\x00b\nc") == "a b c"
    assert style.label("x" * 100 + "end", 20) == "xxxxxxxxx...xxxxxend"
    assert len(style.label("x" * 100, 20)) == 20
    assert style.symbol("P_t(f_t)/f_s") == "P<sub>t</sub>(f<sub>t</sub>)/f<sub>s</sub>"
    assert style.symbol("train_top1") == "train_top1"


@pytest.mark.slow
def test_hostile_names_stay_text(three: Path) -> None:
    """In ids, classes and notes: no tag of theirs appears in a page, and the data around it stays readable JSON."""
    run = (three / "customkd" / "seed0" / "report.html").read_text()
    for page in (run, (three / "report.html").read_text()):
        assert "<script>document" not in page
        assert "<img src=x" not in page
        assert "<b>bold" not in page
        assert specs(page)
    assert str(markupsafe.escape(HOSTILE)) in run
    assert "\\u003cscript\\u003e" not in json.dumps([spec["data"] for spec in specs(run)])


# --- what a page holds ---------------------------------------------------------------------------------------------


def test_a_page_is_one_file_without_addresses(tmp_path: Path) -> None:
    """No script, style, image or font from elsewhere; the policy forbids them; below 6 MB; equal when made again."""
    path = report.draw_run(finished_run(tmp_path))
    page = path.read_text()
    assert path.stat().st_size < 6e6
    frame = re.sub(r'<script id="library".*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", frame)
    assert "http://" not in frame
    assert "https://" not in frame
    assert "default-src 'none'" in page
    packed = re.search(r'<script id="library" type="text/plain">(.*?)</script>', page)
    assert packed is not None
    assert b"plotly.js" in gzip.decompress(base64.b64decode(packed[1]))[:300]
    assert report.draw_run(path.parent).read_text() == page


def test_the_page_of_a_run(three: Path) -> None:
    """All sections, the comparison with labels of the same seed, pictures inside the file."""
    page = (three / "customkd" / "seed1" / "report.html").read_text()
    for heading in (
        "Learning",
        "Classes",
        "Measures",
        "Hardest images",
        "Feature map",
        "Cost and settings",
    ):
        assert f">{heading}</h2>" in page, heading
    for title in (
        "CKA during training",
        "Confusion",
        "Calibration",
        "Accuracy under corruption",
        "Student, f_s",
    ):
        assert title in page, title
    assert page.count("data:image/jpeg;base64,") == 5
    assert "compared with training on the labels alone" in page
    assert "the target inflates" in page
    run = read_run(three / "customkd" / "seed1")
    assert f"{100 * run.value:.1f}" in page


def test_a_run_without_extras_still_has_a_page(tmp_path: Path) -> None:
    """Runs that kept nothing, were never corrupted, or lost their predictions: sections are left out, not broken."""
    folder = finished_run(tmp_path, extras=False, corrupted=False)
    page = report.draw_run(folder).read_text()
    assert "Hardest images" not in page
    assert "Feature map" not in page
    assert "corruption" not in page
    (folder / "predictions.npz").unlink()
    (folder / "metrics.jsonl").unlink()
    assert "Accuracy per class" in report.draw_run(folder).read_text()


def test_one_class_too_many_for_a_matrix(tmp_path: Path) -> None:
    """With 50 classes the extremes and the frequent mistakes are shown, all of them are in the CSV."""
    names = [f"class {number}" for number in range(50)]
    folder = finished_run(tmp_path, classes=names, per_class=2, extras=False)
    finished_run(tmp_path, "labels", classes=names, per_class=2, extras=False, skill=1.0)
    page = report.draw_run(folder).read_text()
    assert ">Confusion</h3>" not in page
    assert "Most frequent mistakes" in page
    assert "of 50 classes" in page
    with (folder / "report" / "per_class.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 50
    assert "of 50." in report.draw_comparison(tmp_path).read_text()


def test_the_page_of_all_runs(three: Path) -> None:
    """Means, spread, paired tests, cost paid once, links that lead to the runs' pages."""
    page = (three / "report.html").read_text()
    for heading in (
        "Top-1 accuracy",
        "All measures",
        "Learning",
        "Classes",
        "Robustness",
        "Cost",
        "Runs",
    ):
        assert f">{heading}</h2>" in page, heading
    assert "Compared with labels, paired" in page
    assert "Compared with kd, paired" in page
    assert "took 8 s, once for all; 6 runs took" in page
    for link in re.findall(r'href="([^#"]*report.html)"', page):
        assert (three / link).is_file(), link
    assert page.count("report.html") == 6


def test_the_plain_files_hold_what_is_shown(three: Path) -> None:
    """CSV of every table, and one JSON with all of them."""
    out = three
    values = json.loads((out / "customkd/seed0/report/report.json").read_text())
    assert values["title"] == "customkd, seed 0"
    run = read_run(out / "customkd" / "seed0")
    with (run.folder / "report" / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(run.evaluation["per_class"])
    before = read_run(out / "labels" / "seed0").evaluation["per_class"]
    for row in rows:
        gain = run.evaluation["per_class"][row["class"]] - before[row["class"]]
        assert float(row["gain"]) == pytest.approx(gain)
    with (run.folder / "report" / "hardest.csv").open(newline="") as file:
        hardest = list(csv.DictReader(file))
    answers = run.predictions
    assert answers is not None
    assert [row["id"] for row in hardest] == [
        str(answers.ids[int(row["place"])]) for row in hardest
    ]
    assert float(hardest[0]["loss"]) == max(float(row["loss"]) for row in hardest)
    paired = json.loads((out / "report/report.json").read_text())["paired"]
    gains = {(row["baseline"], row["name"]): row["gain"] for row in paired}
    mine, theirs = (
        np.mean([read_run(out / name / f"seed{seed}").value for seed in (0, 1)])
        for name in ("customkd", "labels")
    )
    assert gains["labels", "customkd"] == pytest.approx(mine - theirs)


# --- folders -------------------------------------------------------------------------------------------------------


def test_runs_are_found_by_folder(tmp_path: Path) -> None:
    """METHOD/seedK, METHOD+PARTNER/seedK, and rows of an experiment; tuning runs only where there is nothing else."""
    finished_run(tmp_path, "customkd", 0, extras=False)
    finished_run(tmp_path, "customkd+fixmatch", 0, extras=False)
    finished_run(tmp_path / "row a", "kd", 0, extras=False)
    finished_run(tmp_path / "kd", "kd", 0, extras=False)
    tuned = finished_run(tmp_path / "tune", "kd", 0, extras=False)
    record = json.loads((tuned / "run.json").read_text())
    record["contract"]["eval"]["part"] = "validation"
    (tuned / "run.json").write_text(json.dumps(record))
    names = {run.name for run in find_runs(tmp_path)}
    assert names == {"customkd", "customkd+fixmatch", "row a/kd", "kd"}
    assert [run.name for run in find_runs(tmp_path / "tune")] == ["kd"]


def test_the_baseline_of_a_run(tmp_path: Path) -> None:
    """The run of labels with the same seed and data; not one of another seed."""
    finished_run(tmp_path / "a", "labels", 0, extras=False)
    finished_run(tmp_path / "a", "labels", 1, extras=False)
    finished_run(tmp_path / "b", "kd", 1, extras=False)
    runs = find_runs(tmp_path)
    found = find_baseline(next(run for run in runs if run.method == "kd"), runs)
    assert found is not None
    assert found.folder == tmp_path / "a" / "labels" / "seed1"


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    """Says what was expected, and names the folder."""
    with pytest.raises(ConfigError):
        find_runs(tmp_path)
    folder = finished_run(tmp_path, extras=False)
    (folder / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="seed0"):
        find_runs(tmp_path)


# --- numbers -------------------------------------------------------------------------------------------------------


def test_curves_leave_out_what_is_no_number(tmp_path: Path) -> None:
    """null, text and warnings."""
    rows = tables.curves(read_run(finished_run(tmp_path, extras=False)))
    assert {row["name"] for row in rows} == {"loss/ce", "lr", "cka/f_s,f_t"}
    assert [row["value"] for row in rows if row["name"] == "loss/ce"] == [1, 0.5, 1 / 3]


def test_single_pairs_are_compared_by_image(tmp_path: Path) -> None:
    """One seed: McNemar's test; images won and lost add up to the difference of the accuracies."""
    finished_run(tmp_path, "labels", skill=0.5, per_class=30, extras=False)
    finished_run(tmp_path, "customkd", skill=4.0, per_class=30, extras=False)
    (row,) = comparison.paired(comparison.by_name(find_runs(tmp_path)))
    assert row["seeds"] == 1
    assert (row["images_won"] - row["images_lost"]) / 120 == pytest.approx(row["gain"])
    assert row["p"] < 0.05
    assert row["low"] is None


def test_pairs_share_their_conditions(tmp_path: Path) -> None:
    """With other labels per class nothing is compared; of several baselines under the same conditions, the best."""
    finished_run(tmp_path / "weak", "labels", skill=0.2, extras=False)
    finished_run(tmp_path / "fair", "labels", skill=1.0, extras=False)
    finished_run(tmp_path / "rich", "labels", skill=9.0, extras=False, labels_per_class=64)
    finished_run(tmp_path / "mine", "customkd", skill=3.0, extras=False)
    rows = comparison.paired(comparison.by_name(find_runs(tmp_path)))
    mine = next(row for row in rows if row["name"] == "mine/customkd")
    assert mine["baseline"] == "fair/labels"
    assert {row["name"] for row in rows} == {"mine/customkd", "weak/labels"}


def test_label_efficiency(tmp_path: Path) -> None:
    """Drawn where the number of labels varies: one line per method, and one of the teacher's probe."""
    for count, skill in ((1, 0.5), (4, 2.0), (16, 4.0)):
        for method in ("labels", "customkd"):
            folder = tmp_path / f"labels={count}"
            finished_run(folder, method, skill=skill, extras=False, labels_per_class=count)
    rows = comparison.label_efficiency(comparison.by_name(find_runs(tmp_path)))
    found = {(row["method"], row["labels_per_class"]) for row in rows}
    names = ("labels", "customkd", "teacher's linear probe")
    assert found == {(name, count) for name in names for count in (1, 4, 16)}
    assert "Label efficiency" in report.draw_comparison(tmp_path).read_text()
    alone = comparison.by_name(find_runs(tmp_path / "labels=4"))
    assert comparison.label_efficiency(alone) == []


def test_differing_settings_are_named(tmp_path: Path) -> None:
    """A comparison of unlike runs says so."""
    finished_run(tmp_path, "labels", extras=False)
    folder = finished_run(tmp_path, "kd", extras=False)
    record = json.loads((folder / "run.json").read_text())
    record["contract"]["train"]["epochs"] = 99
    (folder / "run.json").write_text(json.dumps(record))
    found = comparison.differing(comparison.by_name(find_runs(tmp_path)))
    assert found == {"train.epochs": ["3", "99"]} or found == {"train.epochs": ["99", "3"]}
    assert "train.epochs" in report.draw_comparison(tmp_path).read_text()


def test_the_interval_of_an_accuracy() -> None:
    """Wilson's."""
    low, high = run_page.interval(0.5, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)  # Wilson, e.g. in Agresti & Coull 1998


def test_sections_without_blocks_are_left_out() -> None:
    """Neither heading nor link, and text is escaped once."""
    table = Table("A & B", ("x", "y"), [("<i>", "1")])
    page = Page("T", "S", "F", [], [Section("Empty", []), Section("Full", [table])], ["a.csv"])
    found = render(page)
    assert "Empty" not in found
    assert "A &amp; B" in found
    assert "&lt;i&gt;" in found
    assert "&amp;lt;" not in found


def test_feature_maps_keep_neighbours() -> None:
    """Three groups far apart stay three groups; equal inputs give equal maps; few images need no t-SNE."""
    generator = np.random.default_rng(0)
    labels = np.arange(45) % 3
    centres = 20 * generator.standard_normal((3, 8))
    near = (centres[labels] + generator.standard_normal((45, 8))).astype(np.float32)
    turned = (near @ np.linalg.qr(generator.standard_normal((8, 8)))[0]).astype(np.float32)
    maps = embed({"teacher": near, "student": turned})
    for points in maps.values():
        distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(45)
        assert (labels[distances.argmin(1)] == labels).all()
    assert embed({"x": near[:3]})["x"].shape == (3, 2)
    assert np.isfinite(embed({"x": np.zeros((9, 4), np.float32)})["x"]).all()


# --- other tasks ----------------------------------------------------------------------------------------------------


def unlabelled_run(out: Path, method: str, seed: int, values: tuple[float, float]) -> Path:
    """A run of a task without labels: an error of reconstruction is its score, lower is better."""
    folder = finished_run(out, method, seed, extras=False)
    (folder / "predictions.npz").unlink()
    measures = [
        Measure("error", "reconstruction error", percent=False, higher_is_better=False),
        Measure("recall", "recall@10"),
    ]
    evaluation = {"num_images": 40, "error": values[0], "recall": values[1]}
    record = json.loads((folder / "run.json").read_text())
    for key in ("top1", "teacher_probe_top1", "num_labelled"):
        del record[key]
    record |= score.record(evaluation, measures)
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "run.json").write_text(json.dumps(record))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 10, "epoch": 0, "test_error": 0.9}) + "\n")
    return folder


def test_pages_show_what_a_run_records(tmp_path: Path) -> None:
    """Names, values and order come from the record: no accuracy, no classes, the lowest error is the best."""
    for seed in (0, 1):
        unlabelled_run(tmp_path, "fitnet", seed, (0.125 + seed / 100, 0.75))
        unlabelled_run(tmp_path, "crd", seed, (0.5, 0.25))
    pages = report.rebuild(tmp_path)
    page = (tmp_path / "fitnet" / "seed0" / "report.html").read_text()
    for shown in (
        "reconstruction error: 0.125 on 40 test images",
        "75.0%",
        "Reconstruction error during training",
    ):
        assert shown in page, shown
    frame = re.sub(r'<script id="library".*?</script>', "", page, flags=re.DOTALL)
    assert "accuracy" not in frame.lower()
    assert "predictions.npz" not in frame
    assert '<h2 id="h2">Classes' not in frame
    assert list(comparison.by_name(find_runs(tmp_path))) == ["fitnet", "crd"]
    both = pages[-1].read_text()
    assert "fitnet reaches 0.130 \N{PLUS-MINUS SIGN} 0.007 reconstruction error" in both
    assert "Lower is better" in both
    table = report.runs_table(
        [read_run(path.parent).record for path in sorted(tmp_path.rglob("run.json"))]
    )
    assert "test reconstruction error" in table.splitlines()[0]
    report.write_command_results(
        tmp_path, [read_run(tmp_path / "crd" / "seed0").record], page=False
    )
    assert (tmp_path / "results.csv").read_text().startswith("method,seed,error,recall,")


def test_runs_with_another_score_are_left_out(tmp_path: Path) -> None:
    """A page compares like with like, and says what it leaves out."""
    unlabelled_run(tmp_path, "fitnet", 0, (0.125, 0.75))
    for seed in (0, 1):
        finished_run(tmp_path, "kd", seed, extras=False)
    page = report.rebuild(tmp_path)[-1].read_text()
    assert "1 run judged by reconstruction error left out" in page
    assert (tmp_path / "fitnet" / "seed0" / "report.html").exists()


def test_records_of_older_versions_have_pages(tmp_path: Path) -> None:
    """Their run.json has no score; the measures are then read from evaluation.json."""
    folder = finished_run(tmp_path, extras=False)
    record = json.loads((folder / "run.json").read_text())
    assert "score" not in record
    run = read_run(folder)
    assert run.value == record["top1"]
    assert run.measures["knn_top1"][1] == 0.5
    assert run.reference == (score.PROBE, record["teacher_probe_top1"])


@pytest.mark.parametrize(
    "content", ["[]", "[" * 100_000, '{"score": 1}', "{", '{"score": {"name": []}}']
)
def test_hostile_records_are_an_error(tmp_path: Path, content: str) -> None:
    folder = finished_run(tmp_path, extras=False)
    (folder / "run.json").write_text(content)
    with pytest.raises(ConfigError, match="seed0"):
        read_run(folder)


def test_the_student_is_on_the_curve_without_eval_every(tmp_path: Path) -> None:
    """Measured at the end only, it is one point there."""
    folder = finished_run(tmp_path, extras=False)
    lines = [{"step": step, "epoch": 0, "stage1/train_top1": 0.5} for step in (0, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report.draw_run(folder).read_text()
    assert "--eval.every 1" in page
    drawn: list[Any] = [line for spec in specs(page) for line in spec["data"]]
    (line,) = [line for line in drawn if line.get("name") == "student, test images"]
    assert (line["x"], line["y"]) == ([30], [read_run(folder).value])


def test_a_run_on_labels_alone_is_not_distilled(tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "labels", extras=False)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"teacher_images": 0}))
    page = report.draw_run(folder).read_text()
    assert "trained on labels only" in page
    assert "distilled from" not in page


# --- figures --------------------------------------------------------------------------------------------------------


def test_axes_have_no_prefixes_and_as_many_ticks_as_names() -> None:
    """0.0008 is not 800 micro; a logarithmic axis of one decade has more than one tick."""
    figure = style.empty_figure()
    assert figure.layout.yaxis.exponentformat == "none"
    style.log_axis(figure, "y", [3.0, 40.0])
    assert {"2", "5", "10", "20", "50"} <= set(figure.layout.yaxis.ticktext)
    style.log_axis(figure, "y", [1e-5, 10.0])
    assert "0.00001" in figure.layout.yaxis.ticktext
    assert "2" not in figure.layout.yaxis.ticktext


def test_names_of_points_keep_apart() -> None:
    """Three points in one place get three positions."""
    found = style.text_positions(
        [1, 1, 1, 9], [1, 1, 1, 9], ["one", "two", "three", "far"], size=(900, 400)
    )
    assert len(set(found[:3])) == 3


# --- a real browser ------------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(
    browser.missing(), reason=f"no Chromium with its driver; to run this: {browser.INSTALL}"
)


def hover(window: browser.Browser) -> str:
    """Point at every point of the last feature map in turn; all that is shown then."""
    return str(
        window.run("""
            const map = [...document.querySelectorAll(".drawing")].at(-1);
            let shown = "";
            map.data.forEach((trace, curveNumber) => {
              if (trace.mode !== "markers") return;
              trace.x.forEach((_, pointNumber) => {
                Plotly.Fx.hover(map, [{ curveNumber, pointNumber }]);
                shown += map.querySelector(".hoverlayer").textContent;
              });
            });
            return shown;
        """)
    )


@needs_browser
@pytest.mark.slow
def test_a_browser_draws_the_pages(three: Path, tmp_path: Path) -> None:
    """From disk: every plot is drawn, nothing is fetched, the console stays empty, no name ran, nothing sticks out."""
    run = three / "customkd" / "seed0" / "report.html"
    with browser.browser(tmp_path / "profile") as window:
        for page, headings, width in (
            (run, 6, 1280),
            (run, 6, 390),
            (three / "report.html", 7, 1280),
            (three / "report.html", 7, 390),
        ):
            window.resize(width)
            window.open(page)
            plots = len(specs(page.read_text()))
            assert plots > 5
            assert window.run("return document.documentElement.dataset.drawn") == str(plots)
            drawn = "return [...document.querySelectorAll('.drawing')].filter(d => d.querySelector('.main-svg')).length"
            assert window.run(drawn) == plots
            marks = "return document.querySelectorAll('.scatterlayer path, .barlayer path, .heatmaplayer image').length"
            assert window.run(marks) > 20
            assert window.run("return document.querySelectorAll('h2').length") == headings
            assert window.run("return document.title") in ("customkd, seed 0", "3 methods compared")
            wide, there = window.run("return [document.documentElement.scrollWidth, innerWidth]")
            assert wide <= there == width
            inside = """return [...document.querySelectorAll('.drawing .main-svg')].every(drawn =>
                drawn.getBoundingClientRect().right <= drawn.closest('figure').getBoundingClientRect().right)"""
            assert window.run(inside)
            whole = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
            assert window.run(whole)
            assert window.run("return document.querySelectorAll('.modebar-btn').length") == 0
            if page == run:
                assert HOSTILE in hover(window)
                assert window.run("return document.title") == "customkd, seed 0"
            assert window.console() == []
            fetched = [address for address in window.requests() if not address.startswith("data:")]
            assert fetched == [page.as_uri()]
        window.colour_scheme("dark")
        dark = "return getComputedStyle(document.body).backgroundColor"
        assert window.run(dark) == "rgb(18, 22, 29)"


MISSING_TICKS = """
const found = [];
for (const place of document.querySelectorAll(".drawing")) {
  for (const letter of "xy") {
    const { ticktext, type, visible } = place.layout[`${letter}axis`];
    const shown = place.querySelectorAll(`.${letter}tick`).length;
    if (ticktext && type !== "log" && visible !== false && shown !== ticktext.length) found.push(place.ariaLabel);
  }
}
return found;
"""
"""Plots whose named axis lacks a name."""
BROKEN_LINES = """
return [...document.querySelectorAll(".pictures dl div")].filter((line) => {
  const [label, answer] = [...line.children].map((part) => part.getBoundingClientRect());
  const beside = answer.top < label.bottom;
  return (beside && label.right + 4 > answer.left) || answer.height > 1.5 * label.height;
}).map((line) => line.textContent);
"""
"""Answers below a picture that touch their label or are broken."""
OVERLAPPING = """
const found = [];
for (const place of document.querySelectorAll(".drawing")) {
  const names = [...place.querySelectorAll(".textpoint text")].filter((name) => name.style.visibility !== "hidden");
  const boxes = names.map((name) => name.getBoundingClientRect());
  boxes.forEach((a, at) => boxes.slice(at + 1).forEach((b) => {
    if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) found.push(place.ariaLabel);
  }));
}
return found;
"""
"""Plots with a name on top of another one."""


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_long_names_whole(tmp_path: Path) -> None:
    """40 classes with long names: every tick has its label, no word is broken, no name lies on another one."""
    names = [f"electric_guitar_{number:02d}" for number in range(40)]
    for method, skill in (("labels", 1.0), ("kd", 2.0), ("customkd", 4.0)):
        finished_run(tmp_path, method, classes=names, per_class=3, skill=skill)
    report.rebuild(tmp_path)
    with browser.browser(tmp_path / "profile") as window:
        for width in (1400, 1280, 390):
            window.resize(width)
            for page in (tmp_path / "customkd" / "seed0" / "report.html", tmp_path / "report.html"):
                window.open(page)
                assert window.run(MISSING_TICKS) == [], width
                assert window.run(BROKEN_LINES) == [], width
                assert window.run(OVERLAPPING) == [], width
