"""The entry scripts: recipes and flags become settings, mistakes become one sentence and an exit status."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill import register
from distill.config import DistillConfig
from distill.experiments.spec import read_experiment
from featstore import FeatureStore
from featstore.cli.recipe import EXIT_ERROR, EXIT_TOO_MANY_INVALID, parse, run_main
from featstore.errors import ConfigError
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig, ViewsConfig
from featstore.sources.config import SourceConfig
from pipelines import extract
from tests.conftest import ROOT, TINY_ARGS

RECIPES = sorted((ROOT / "pipelines" / "recipes").glob("**/*.yaml"))


def parse_extract(*argv: str) -> ExtractConfig:
    return parse(ExtractConfig, default_recipe=extract.DEFAULT_RECIPE, argv=argv)


@pytest.fixture
def recipe(image_folder: Path, teacher_file: Path, tmp_path: Path) -> Path:
    """A recipe beside its images and its teacher; paths in it are relative to it."""
    (tmp_path / "images").symlink_to(image_folder)
    (tmp_path / "tiny.safetensors").symlink_to(teacher_file)
    values = {
        "source": {"kind": "folder", "path": "./images"},
        "teacher": {
            "name": "vit_tiny_patch16_224",
            "weights": "./tiny.safetensors",
            "image_size": 32,
            "model_args": TINY_ARGS,
        },
        "store": {"path": "./store", "fields": ["cls"], "shard_rows": 8},
        "batch_size": 4,
        "workers": 0,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


# --- recipes and flags ---------------------------------------------------------------------------------------------


def test_there_are_recipes() -> None:
    """The glob below finds something, the default recipe first of all."""
    assert extract.DEFAULT_RECIPE in [path.resolve() for path in RECIPES]
    assert len([path for path in RECIPES if path.name.startswith("extract")]) >= 2
    assert len([path for path in RECIPES if path.name.startswith("distill")]) >= 1


@pytest.mark.parametrize(
    "path",
    [path for path in RECIPES if path.name.startswith(("extract", "distill"))],
    ids=lambda path: path.relative_to(ROOT / "pipelines" / "recipes").as_posix(),
)
def test_every_recipe_parses(path: Path) -> None:
    """Every key of every recipe is known, and every value passes the checks."""
    kind: type[Any] = ExtractConfig if path.name.startswith("extract") else DistillConfig
    extend = None if kind is ExtractConfig else register.kinds
    config: Any = parse(kind, default_recipe=path, argv=[], extend=extend)
    values = yaml.safe_load(path.read_text())
    # Not only accepted: a value of the recipe is the value of the settings.
    section, inner = next((key, value) for key, value in values.items() if isinstance(value, dict))
    key, value = next(iter(inner.items()))
    found = getattr(getattr(config, section), key)
    assert found == value or str(value).startswith("./")


@pytest.mark.parametrize(
    "path",
    [path for path in RECIPES if "recipe" in yaml.safe_load(path.read_text())],
    ids=lambda path: path.relative_to(ROOT / "pipelines" / "recipes").as_posix(),
)
def test_every_experiment_parses(path: Path) -> None:
    """The recipe that it names is there, and every key of the file and of its rows is known."""
    experiment = read_experiment(path)
    assert experiment.variants or "methods" in experiment.recipe
    assert not experiment.baseline or experiment.baseline.split(",")[0] in experiment.variants


def test_flags_win_over_the_recipe(recipe: Path) -> None:
    """The last one wins; what neither names keeps its default."""
    config = parse_extract("--config", str(recipe), "--batch_size", "2", "--views.seeded=3")
    assert (config.batch_size, config.views.seeded, config.store.shard_rows) == (2, 3, 8)
    assert config.store.dtype == StoreConfig().dtype
    assert parse_extract(f"--config={recipe}", "--store.fields", "[cls,mean]").store.fields == [
        "cls",
        "mean",
    ]


def test_without_a_recipe_the_default_is_read() -> None:
    """No --config: the recipe of the digits."""
    config = parse_extract("--batch_size", "7")
    assert (config.source.kind, config.batch_size) == ("digits", 7)
    assert Path(config.teacher.weights) == extract.DEFAULT_RECIPE.parent / "teacher.safetensors"


def test_paths_of_a_recipe(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """./ and ../ are relative to the recipe, also in lists; other paths to the working directory; flags as typed."""
    values = yaml.safe_load(recipe.read_text())
    values["source"]["path"] = "../pictures"
    values["source"]["include"] = ["*", "./x"]
    values["store"]["path"] = "outputs/here"
    recipe.write_text(yaml.safe_dump(values))
    monkeypatch.chdir(recipe.parent)
    config = parse_extract("--config", recipe.name, "--teacher.weights", "./typed.pt")
    assert config.source.path == str(recipe.parent / "../pictures")
    assert config.source.include == ["*", str(recipe.parent / "x")]
    assert config.store.path == "outputs/here"
    assert config.teacher.weights == "./typed.pt"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], False),
        (["--dry_run"], True),
        (["--dry_run", "--batch_size", "2"], True),
        (["--batch_size", "2", "--dry_run"], True),
        (["--dry_run", "false"], False),
        (["--dry_run=true"], True),
    ],
)
def test_a_bare_switch(recipe: Path, argv: list[str], expected: bool) -> None:
    """--dry_run alone means true; a value after it counts."""
    assert parse_extract("--config", str(recipe), *argv).dry_run is expected


def test_a_bare_switch_inside_a_section(recipe: Path) -> None:
    """--views.mirrored too."""
    assert parse_extract("--config", str(recipe), "--views.mirrored").views.mirrored is True


@pytest.mark.parametrize(
    "argv",
    [
        ["--later", "1"],
        ["--store.later", "1"],
        ["--batch", "2"],
        ["--batch_size", "many"],
        ["--store.dtype", "int4"],
        ["--views.seeded", "1.5"],
        ["positional"],
    ],
    ids=" ".join,
)
def test_wrong_flags(recipe: Path, argv: list[str]) -> None:
    """Unknown, abbreviated or ill-typed flags name themselves."""
    with pytest.raises(ConfigError, match=argv[0]):
        parse_extract("--config", str(recipe), *argv)


@pytest.mark.parametrize("where", ["", "source", "teacher", "views", "store"])
def test_unknown_keys_of_a_recipe(recipe: Path, where: str) -> None:
    """At every level, by file and line."""
    values = yaml.safe_load(recipe.read_text())
    (values.setdefault(where, {}) if where else values)["later"] = 1
    recipe.write_text(yaml.safe_dump(values))
    line = next(n for n, text in enumerate(recipe.read_text().splitlines(), 1) if "later" in text)
    with pytest.raises(ConfigError, match=rf"recipe.yaml:{line}: --{where and where + '.'}later"):
        parse_extract("--config", str(recipe))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"recipe.yaml"),
        ("a: [", "not valid YAML"),
        ("[1, 2]", "found list"),
        ("", "found nothing"),
        ("\x00", "not valid YAML"),
    ],
)
def test_recipes_that_cannot_be_read(tmp_path: Path, content: str | None, message: str) -> None:
    """One sentence with the path."""
    if content is not None:
        (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        parse_extract("--config", str(tmp_path / "recipe.yaml"))


def test_a_recipe_may_hold_a_date(recipe: Path) -> None:
    """YAML makes a date of 2026-01-31; as the name of a store it is that text."""
    values = recipe.read_text().replace("./store", "2026-01-31")
    recipe.write_text(values.replace("'2026-01-31'", "2026-01-31"))
    assert parse_extract("--config", str(recipe)).store.path == "2026-01-31"


def test_config_without_a_path() -> None:
    """--config as the last word is a mistake, not a default."""
    with pytest.raises(ConfigError, match="--config"):
        parse_extract("--config")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: SourceConfig(kind="folder"),
            r"--source.path.*'folder'",
        ),
        (lambda: SourceConfig(include=[]), r"--source.include"),
        (lambda: TeacherConfig(name=""), r"--teacher.name"),
        (lambda: TeacherConfig(tag="x"), r"--teacher.tag 'x'.*open_clip"),
        (lambda: TeacherConfig(image_size=-1), r"--teacher.image_size -1"),
        (lambda: TeacherConfig(crop_pct=1.5), r"--teacher.crop_pct 1.5.*\b0\b.*\b1\b"),
        (lambda: TeacherConfig(mean=[0.5]), r"--teacher.mean.*\b1\b"),
        (lambda: ViewsConfig(seeded=-1), r"--views.seeded -1"),
        (lambda: ViewsConfig(canonical=False), "leaves no view to store"),
        (lambda: ViewsConfig(scale=[0.5, 2.0]), r"--views.scale .*0.5.*2.0"),
        (lambda: ViewsConfig(ratio=[2.0, 1.0]), r"--views.ratio .*2.0.*1.0"),
        (lambda: StoreConfig(path=""), r"--store.path"),
        (lambda: StoreConfig(fields=[]), r"--store.fields is"),
        (lambda: StoreConfig(fields=["cls", "cls"]), r"--store.fields"),
        (lambda: StoreConfig(shard_rows=0), r"--store.shard_rows 0\b"),
        (lambda: StoreConfig(shard_mb=0), r"--store.shard_mb 0\b"),
        (lambda: StoreConfig(lease_s=0), r"--store.lease_s 0\b"),
        (lambda: ExtractConfig(batch_size=0), r"--batch_size 0\b"),
        (lambda: ExtractConfig(workers=-1), "--workers -1"),
        (
            lambda: ExtractConfig(max_invalid_share=2),
            r"--max_invalid_share 2\b.*\b0\b.*\b1\b",
        ),
    ],
)
def test_values_out_of_range(build: Any, message: str) -> None:
    """The error names the setting as it is spelled on the command line."""
    with pytest.raises(ConfigError, match=message):
        build()


# --- extract.py ----------------------------------------------------------------------------------------------------


def run_script(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    """The script as ``python pipelines/extract.py`` runs it, in this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["extract.py", *argv])
    try:
        run_main(extract.run, ExtractConfig, default_recipe=extract.DEFAULT_RECIPE)
    except SystemExit as error:
        return int(str(error.code))
    return 0


def test_extract_from_recipe_to_store(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plan, extract, report; a second run has nothing to do and says so."""
    assert run_script(monkeypatch, "--config", str(recipe)) == 0
    text = capsys.readouterr().out
    for part in (
        "teacher   vit_tiny_patch16_224",
        "views     1: canonical",
        "rows      26 images, 26 still to do",
        "bottleneck: ",
        "26 rows in",
        "26 of them from this run",
        "0 without a usable image",
        f"next: accelerate launch pipelines/distill.py --store {recipe.parent}",
        "--source.kind folder --source.path ",
        "--data.holdout 0.2",
    ):
        assert part in text, part
    store = FeatureStore.open(recipe.parent / "store")
    assert store.valid.all()
    assert store.manifest.source.class_names == ("cat", "dog")
    assert store.gather("cls", [0]).shape == (1, 1, 16)
    assert run_script(monkeypatch, "--config", str(recipe)) == 0
    assert "0 of them from this run" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan is printed, and no file is made anywhere near."""
    before = sorted(recipe.parent.iterdir())
    assert run_script(monkeypatch, "--config", str(recipe), "--dry_run") == 0
    text = capsys.readouterr().out
    assert "832 B (cls 832 B)" in text
    assert "dry run: nothing was written" in text
    assert sorted(recipe.parent.iterdir()) == before


def test_too_many_bad_images(
    recipe: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Over the allowed share: status 3, all are listed, the store is complete; with the advice taken: status 0."""
    images = recipe.parent / "more"
    (images / "cat").mkdir(parents=True)
    for number, path in enumerate(sorted(image_folder.rglob("*.png"))):
        (images / "cat" / f"{number}.png").write_bytes(path.read_bytes() if number > 1 else b"")
    flags = ["--config", str(recipe), "--source.path", str(images)]
    assert run_script(monkeypatch, *flags) == EXIT_TOO_MANY_INVALID == 3
    out, err = capsys.readouterr()
    for number in (0, 1):
        assert f"skipped cat/{number}.png: empty file (0 bytes)" in out
    assert "error: " in err
    assert "2 of 17 images are unusable" in err
    assert FeatureStore.open(recipe.parent / "store").valid.sum() == 15
    advice = err.split("--max_invalid_share ")[1].split()[0]
    assert run_script(monkeypatch, *flags, "--max_invalid_share", advice) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--teacher.weights", "/no/such/file"], "--teacher.weights /no/such/file: no such file"),
        (["--source.path", "/no/such/folder"], "/no/such/folder: no such folder"),
        (["--source.include", "[none/*]"], "none of 26 samples matches --source.include"),
        (["--store.fields", "[cls,projected]"], "field 'projected': this teacher can give cls"),
        (["--store.path", "/dev/null/s"], "cannot"),
        (["--teacher.name", "vit_tinny"], "timm has no such model"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_failed_start_leaves_nothing(
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    """Status 2, one sentence, no half-made store; the right command works afterwards."""
    before = sorted(recipe.parent.iterdir())
    assert run_script(monkeypatch, "--config", str(recipe), *flags) == EXIT_ERROR == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert sorted(recipe.parent.iterdir()) == before
    if flags[0] == "--teacher.weights":
        assert run_script(monkeypatch, "--config", str(recipe)) == 0


def test_other_settings_are_refused_by_the_plan(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second run with another batch size ends with both values before any work."""
    assert run_script(monkeypatch, "--config", str(recipe)) == 0
    assert run_script(monkeypatch, "--config", str(recipe), "--batch_size", "2") == 2
    assert "work.batch_size: the store has 4, now asked for 2" in capsys.readouterr().err


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupt is status 130 and says that nothing is lost."""

    def interrupted(config: ExtractConfig) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["extract.py"])
    with pytest.raises(SystemExit) as caught:
        run_main(interrupted, ExtractConfig, default_recipe=extract.DEFAULT_RECIPE)
    assert caught.value.code == 130
    assert "the same command again" in capsys.readouterr().err


@pytest.mark.slow
def test_the_readme_command_plans(tmp_path: Path) -> None:
    """``accelerate launch pipelines/extract.py`` in a fresh process and another folder, on the embedded default."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--cpu"),
            *(str(ROOT / "pipelines" / "extract.py"), "--dry_run"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "rows      1,797 images, 1,797 still to do" in done.stdout
    assert "dry run: nothing was written" in done.stdout
    assert not list(tmp_path.iterdir())
