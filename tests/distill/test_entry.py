"""The two scripts: ``main(cfg)``, fresh processes, exit codes, and two processes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill import register
from distill.commands.config import EvaluateConfig
from distill.commands.evaluate import run as evaluate_main
from distill.commands.train import run as main
from distill.config import RECIPES, DataConfig, DistillConfig
from featstore.cli.recipe import parse
from featstore.errors import ConfigError
from featstore.sources.config import SourceConfig
from tests.conftest import RunTwo
from tests.distill.conftest import MakeConfig

ROOT = Path(__file__).resolve().parents[2]


def write_recipe(path: Path, config: Any) -> Path:
    values = config.plain() if hasattr(config, "plain") else dataclasses.asdict(config)
    path.write_text(yaml.safe_dump(values))
    return path


def launch(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)


def test_both_default_recipes_parse() -> None:
    """Every key is known, and flags after the recipe win."""
    config = parse(
        DistillConfig,
        extend=register.kinds,
        default_recipe=RECIPES / "distill.yaml",
        argv=["--seeds", "[7]"],
    )
    assert config.seeds == [7]
    assert config.source.kind == "digits"
    evaluated = parse(EvaluateConfig, default_recipe=RECIPES / "evaluate.yaml", argv=[])
    assert (evaluated.store, evaluated.source) == ("", None)  # those of the run


@pytest.mark.slow
def test_train_then_evaluate(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """One command trains and compares; the other measures again and finds the same numbers."""
    config = make_config(methods=["labels", "customkd"], seeds=[0, 1], train__epochs=1)
    records = main(config)
    out = capsys.readouterr().out
    assert [(r["method"], r["seed"]) for r in records] == [
        ("labels", 0), ("customkd", 0), ("labels", 1), ("customkd", 1),
    ]  # fmt: skip
    assert "teacher's linear probe  2 " in out
    assert "timm.create_model(" in out
    assert "pipelines/evaluate.py --model " in out.strip().splitlines()[-1]
    folder = Path(config.out) / "customkd" / "seed0"
    settings = EvaluateConfig(
        model=str(folder),
        store=config.store,
        source=config.source,
        data=config.data,
        eval=config.eval,
        workers=0,
    )
    again = evaluate_main(settings)
    assert again == json.loads((folder / "evaluation.json").read_text())
    alone = evaluate_main(dataclasses.replace(settings, store="", out=str(folder / "alone.json")))
    assert "teacher" not in alone
    assert alone["top1"] == again["top1"]
    # The snippet of the output, run as it is printed.
    code = out[out.index("import timm") : out.index("next:")]
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["model"].num_classes == 3
    main(config)
    assert capsys.readouterr().out.count("(finished before)") == 4


@pytest.mark.slow
def test_other_classes_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    """A student of three classes is not measured on ten digits."""
    config = make_config(methods=["labels"], train__epochs=1)
    main(config)
    digits = EvaluateConfig(
        model=str(Path(config.out) / "labels" / "seed0"),
        source=SourceConfig(kind="digits"),
        data=DataConfig(),
        workers=0,
    )
    with pytest.raises(ConfigError, match=r"\b3\b.*\b10\b"):
        evaluate_main(digits)
    with pytest.raises(ConfigError, match=r"config.json|student.safetensors"):
        evaluate_main(dataclasses.replace(digits, model=str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--train.lr", "0"],
        ["--task", "nonsense"],
        ["--data.mirror", "true"],
        ["--store", "no/such/store"],
    ],
)
def test_a_wrong_setting_is_one_sentence_and_status_2(
    make_config: MakeConfig, tmp_path: Path, flags: list[str]
) -> None:
    """In a fresh process; no traceback."""
    recipe = write_recipe(tmp_path / "r.yaml", make_config())
    done = launch(sys.executable, "pipelines/distill.py", "--config", str(recipe), *flags)
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_importing_distill_stays_light() -> None:
    """The package and its settings pull in neither torch nor timm; the whole of it no teacher."""
    light = "import sys, distill, distill.config; assert not {'torch', 'timm', 'accelerate'} & set(sys.modules)"
    assert launch(sys.executable, "-c", light).returncode == 0
    heavy = (
        "import sys, distill.training.loop, distill.reports.report\n"
        "assert not {'featstore.extraction.teachers', 'featstore.extraction.shards', 'open_clip'} & set(sys.modules)"
    )
    assert launch(sys.executable, "-c", heavy).returncode == 0


def lines_of(config: DistillConfig, method: str) -> list[dict[str, Any]]:
    path = Path(config.out) / method / "seed0" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(
    make_config: MakeConfig, tmp_path: Path, run_two: RunTwo
) -> None:
    """Every logged number agrees; the student has no batch norm, whose statistics are per process.

    Sums over the halves of a batch are taken in another order: float32 rounding, carried through 6 steps of AdamW,
    which divides by small second moments at first. 1e-3 is a hundred times what was seen and far below any effect of
    a wrong share.
    """
    config = make_config(methods=["customkd", "kd"])
    main(config)
    two = dataclasses.replace(config, out=config.out + "-two")
    recipe = write_recipe(tmp_path / "r.yaml", two)
    done = run_two(["pipelines/distill.py", "--config", str(recipe)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: ") == 1
    for method in config.methods:
        ones, twos = lines_of(config, method), lines_of(two, method)
        assert len(ones) == len(twos) > 4
        for a, b in zip(ones, twos, strict=True):
            assert a.keys() == b.keys()
            numbers = {key: value for key, value in a.items() if not isinstance(value, str)}
            assert {key: b[key] for key in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-5)
        record = json.loads((Path(two.out) / method / "seed0" / "run.json").read_text())
        assert record["num_processes"] == 2


@pytest.mark.slow
def test_the_published_command(make_config: MakeConfig, tmp_path: Path) -> None:
    """accelerate launch finds the package although the script has its name; the record says: no teacher was loaded."""
    config = make_config(methods=["customkd"], train__epochs=1)
    recipe = write_recipe(tmp_path / "r.yaml", config)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "pipelines/distill.py"]
    done = launch(*command, "--config", str(recipe))
    assert done.returncode == 0, done.stderr
    assert "customkd" in done.stdout
    record = json.loads((Path(config.out) / "customkd" / "seed0" / "run.json").read_text())
    assert record["teacher_modules_loaded"] == []
    assert record["peak_memory_mb"] > 0
