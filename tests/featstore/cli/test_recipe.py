"""One parser for recipes, flags and calls: what it accepts, what it refuses, and what it says."""

import dataclasses
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from featstore.cli.recipe import command, parse
from featstore.cli.schema import Schema, build_config, given, recorded
from featstore.cli.yaml_with_lines import MOST_VALUES, read_yaml
from featstore.errors import ConfigError
from featstore.sources.config import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """A part."""

    lr: float = 0.1  # learning rate
    steps: int = 3  # steps
    names: list[str] = dataclasses.field(default_factory=list)  # names

    def __post_init__(self) -> None:
        require(self.lr > 0, f"--train.lr {self.lr} must be positive.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """All settings."""

    COMMON: ClassVar[tuple[str, ...]] = ("mode", "train.lr")

    mode: Literal["no", "fast", "slow"] = "no"  # how
    text: str = "t"  # anything
    dry_run: bool = False  # only plan
    start: bool | Literal["auto"] = False  # one of three
    kinds: list[Literal["a", "b"] | Literal["all"]] = dataclasses.field(default_factory=list)
    """Some."""
    args: dict[str, Any] = dataclasses.field(default_factory=dict)  # any names
    parts: list[Inner] = dataclasses.field(default_factory=list)  # several
    train: Inner = dataclasses.field(default_factory=Inner)
    plugins: list[str] = dataclasses.field(default_factory=list)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def read(*argv: str, recipe: str = "mode: fast", folder: Path | None = None) -> Outer:
    path = (folder or Path("/nowhere")) / "r.yaml"
    if folder is not None:
        path.write_text(recipe)
    return parse(Outer, default_recipe=path, argv=argv)


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--train.lr", "1e-3"], "train.lr", 1e-3),
        (["--train.lr=2"], "train.lr", 2.0),
        (["--train.steps", "-4"], "train.steps", -4),
        (["--train", "{lr: 0.5, steps: 7}"], "train.steps", 7),
        (["--train.names", "cls"], "train.names", ["cls"]),
        (["--train.names", "train/*"], "train.names", ["train/*"]),
        (["--train.names", "*"], "train.names", ["*"]),
        (["--train.names", "[a, b]"], "train.names", ["a", "b"]),
        (["--train.names", ""], "train.names", []),
        (["--text", "12"], "text", "12"),
        (["--text", "a: b: c"], "text", "a: b: c"),
        (["--text", ""], "text", ""),
        (["--mode", "no"], "mode", "no"),
        (["--kinds", "all"], "kinds", ["all"]),
        (["--dry-run"], "dry_run", True),
        (["--dry_run", "--mode", "slow"], "dry_run", True),
        (["--dry-run", "false"], "dry_run", False),
        (["--start"], "start", True),
        (["--start", "true"], "start", True),
        (["--start", "auto", "--start", "false"], "start", False),
        (["--start", "auto"], "start", "auto"),
        (["--args.size", "4", "--args.name", "x"], "args", {"size": 4, "name": "x"}),
        (["--args.size", "4", "--args", "{a: 1}"], "args", {"a": 1}),
        (["--parts", "[{lr: 2}, {steps: 1}]"], "parts", [Inner(lr=2.0), Inner(steps=1)]),
        (["--parts", "{lr: 2}"], "parts", [Inner(lr=2.0)]),
    ],
)
def test_what_a_flag_may_hold(argv: list[str], name: str, value: Any, tmp_path: Path) -> None:
    """Numbers as people write them, one value for a list of one, text as it stands, sections and single entries."""
    found: Any = read(*argv, folder=tmp_path)
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--train.lrr", "1"], ["--train.lrr", "--train.lr"]),
        (["--trian.lr", "1"], ["--trian.lr", "--train.lr"]),
        (["--lr", "1"], ["--lr", "--train.lr"]),
        (["--dry", "true"], ["--dry", "--dry_run"]),
        (["--train.lr", "fast"], ["--train.lr", "fast", "a number"]),
        (["--train.lr", "nan"], ["--train.lr", "nan"]),
        (["--train.lr", "0"], ["--train.lr 0.0"]),
        (["--train.steps", "1.5"], ["--train.steps", "1.5", "a whole number"]),
        (["--train.steps", "true"], ["--train.steps", "true"]),
        (["--train.steps"], ["--train.steps"]),
        (["--train", "3"], ["--train", "3"]),
        (["--mode", "fsat"], ["--mode", "fsat", "no, fast, slow", "Did you mean fast"]),
        (["--start", "atuo"], ["--start", "true, false, auto", "Did you mean auto"]),
        (["--kinds", "[a, c]"], ["--kinds", "c", "a, b, all"]),
        (["--dry_run", "perhaps"], ["--dry_run", "true or false"]),
        (["--parts", "[{lrr: 2}]"], ["lrr", "lr"]),
        (["word"], ["word", "--NAME VALUE"]),
    ],
)
def test_mistakes_are_named(argv: list[str], words: list[str], tmp_path: Path) -> None:
    """The flag as it was typed, what was found, what was expected, and the nearest name; no Python type."""
    with pytest.raises(ConfigError) as caught:
        read(*argv, folder=tmp_path)
    for word in words:
        assert word in str(caught.value)
    assert not re.search(r"typing|<class|Literal", str(caught.value))


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        ("mode: fast\ntrain:\n  lrr: 1\n", 3),
        ("mode: fast\ntrain:\n  lr: 0\n", 3),
        ("mode: fast\ntrain:\n  steps: many\n", 3),
        ("mode: quick\n", 1),
        ("mode: fast\nmode: slow\n", 2),
        ("train:\n  lr: 1\n  lr: 2\n", 3),
        ("train.lr: 1\ntrain:\n  lr: 2\n", 3),
        ("text: !!python/object:os.system x\n", 1),
        ("text: !own x\n", 1),
        ("train:\n  steps: !!int ten\n", 2),
        ("? [a]\n: b\n", 1),
    ],
)
def test_a_mistake_in_a_recipe_has_file_and_line(recipe: str, line: int, tmp_path: Path) -> None:
    """Duplicate names and tags too, which YAML lets pass."""
    with pytest.raises(ConfigError, match=rf"r\.yaml:{line}: "):
        read(recipe=recipe, folder=tmp_path)


def bomb(levels: int, shape: str = "[{}]") -> str:
    lines = ["a0: &a0 {x: 1}"]
    for level in range(levels):
        aliases = ", ".join([f"*a{level}"] * 10)
        lines.append(f"a{level + 1}: &a{level + 1} " + shape.format(aliases))
    return "\n".join(lines)


@pytest.mark.parametrize(
    "recipe",
    [
        bomb(9),
        "a: &a [*a]",
        "a: &a {<<: *a}",
        "a: " + "[" * 3000 + "]" * 3000,
        bomb(9, "{{<<: [{}]}}"),
        "a: 2026-99-99",
        "a: " + "9" * 6000,
    ],
    ids=["bomb", "itself", "merged into itself", "deep", "merge bomb", "no date", "long number"],
)  # fmt: skip
def test_hostile_yaml_ends_soon_and_cleanly(recipe: str, tmp_path: Path) -> None:
    """Aliases in aliases, endless nesting, impossible scalars: one error, or a value that is text."""
    path = tmp_path / "r.yaml"
    path.write_text(recipe)
    try:
        read_yaml(path)
    except ConfigError as error:
        assert str(path) in str(error)


def test_merges_and_aliases_still_work(tmp_path: Path) -> None:
    """``<<`` takes what the mapping itself does not name; the earlier of several wins; an alias may stand twice."""
    path = tmp_path / "r.yaml"
    path.write_text(
        "base: &b {lr: 1, steps: 2}\nother: &o {lr: 3, names: x}\n"
        "one: &one {<<: *b, lr: 5}\ntwo: {<<: [*b, *o]}\nagain: *one\n"
    )
    found = read_yaml(path).plain()
    assert found["one"] == found["again"] == {"lr": 5, "steps": 2}
    assert found["two"] == {"lr": 1, "steps": 2, "names": "x"}
    assert MOST_VALUES > 1000


def test_images_of_ones_own_leave_the_default_recipe_out(tmp_path: Path) -> None:
    """The kind follows from what lies there; nothing of the default recipe is left."""
    from featstore.extraction.config import DEFAULT_RECIPE, ExtractConfig

    argv = ["--source.path", str(tmp_path), "--store.path", "s"]
    config = parse(ExtractConfig, default_recipe=DEFAULT_RECIPE, argv=argv)
    assert (config.source.kind, config.teacher.weights, config.views.seeded) == ("folder", "", 0)
    other = parse(ExtractConfig, default_recipe=DEFAULT_RECIPE, argv=["--store.path", "s"])
    assert other.source.kind == "digits"
    assert other.teacher.weights


def test_calls_from_python_use_the_same_names(tmp_path: Path) -> None:
    """Paths, tuples and ranges are fine; a wrong name is named."""
    made = build_config(
        Outer, {"text": tmp_path, "train": {"names": ("a",), "lr": 1}, "kinds": ["a"]}
    )
    assert made == Outer(text=str(tmp_path), train=Inner(names=["a"], lr=1.0), kinds=["a"])
    with pytest.raises(ConfigError, match=r"--train\.lrr"):
        build_config(Outer, {"train": {"lrr": 1}})


def test_sections_of_others_end_up_in_options() -> None:
    """Only those that are given."""
    kinds = {"mine": Inner, "kinds": list[Literal["x"]]}
    made = build_config(Outer, {"mine": {"lr": 2}, "kinds": "x"}, kinds)
    assert made.options == {"mine": Inner(lr=2.0)}
    assert made.kinds == ["x"]
    assert build_config(Outer, {}, kinds).options == {}
    assert {"mine.lr", "train.lr"} <= Schema(Outer, kinds).leaves.keys()


def test_help_opens_with_the_common_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--help``: the common ones; ``--help SECTION``; ``--help all``; with defaults and choices."""

    def shown(*argv: str) -> set[str]:
        with pytest.raises(SystemExit) as caught:
            read(*argv, folder=tmp_path)
        assert not caught.value.code
        return set(re.findall(r"^  --([\w.]+)", capsys.readouterr().out, re.M))

    assert shown("--help") == {"mode", "train.lr"}
    assert shown("--help", "train") == {"train.lr", "train.steps", "train.names"}
    assert shown("--help", "all") == set(Schema(Outer).leaves)
    with pytest.raises(ConfigError, match="--train"):
        read("--help", "trian", folder=tmp_path)


def test_a_command_can_be_pasted() -> None:
    """Words with spaces are quoted."""
    assert command("distill", "run", "--out", Path("a b")) == "distill run --out 'a b'"


def test_what_was_given(tmp_path: Path) -> None:
    """Flags, named recipes and calls count, also where they equal the default; the default recipe does not."""
    base = "train: {lr: 0.1, steps: 5}"
    assert given(read("--train.names", "[]", recipe=base, folder=tmp_path).train) == {"names"}
    assert given(read("--train.lr", "0.1", recipe=base, folder=tmp_path).train) == {"lr"}
    named = read("--config", str(tmp_path / "r.yaml"), recipe=base, folder=tmp_path)
    assert given(named.train) == {"lr", "steps"}
    call = build_config(Outer, {"train": {"steps": 3}}, recipe=tmp_path / "r.yaml")
    assert given(call.train) == {"lr", "steps"}
    call = build_config(
        Outer, {"train": {"steps": 3}}, recipe=tmp_path / "r.yaml", recipe_is_default=True
    )
    assert given(call.train) == {"steps"}
    made = Inner(lr=0.1, steps=4)
    assert (recorded(made), given(made)) == (None, {"steps"})
    assert call == dataclasses.replace(call, train=dataclasses.replace(call.train))
