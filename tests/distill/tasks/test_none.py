"""Task none: backbones from images alone, measured by their teacher; nothing needs a label."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from distill import cli
from distill.commands.config import EvaluateConfig, ReportConfig
from distill.commands.evaluate import run as evaluate
from distill.commands.report import run as redraw
from distill.commands.train import run
from distill.config import RECIPES, DataConfig, DistillConfig, StudentConfig
from distill.data import joined
from distill.data.samples import Indices, Samples
from distill.evaluation import embedding
from distill.methods import METHODS
from distill.register import kinds, options_of
from distill.student.model import build_student
from distill.tasks import TASKS, Task, build_task, resolve
from distill.tasks.none import held_out, without_labels
from distill.training.run_folder import lock
from distill.training.run_record import read_record
from featstore import FeatureStore
from featstore.cli.recipe import parse
from featstore.cli.schema import build_config
from featstore.errors import ConfigError, StoreBusy
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from tests.distill.conftest import MakeConfig
from tests.distill.resume import check_resume
from tests.distill.stores import WIDTH, draw_images, write_store

METHODS_WITHOUT_LABELS = (
    "fitnet", "fitnet_grid", "rkd", "cc", "cc_crd", "sp", "pkt", "crd", "at", "queue_kl", "specmatch", "tffd",
    "pointdistiller", "embedding", "autodistil",
)  # fmt: skip
"""Every registered method that needs neither labels nor a classifier."""


SCRIPT = Path(__file__).parents[3] / "pipelines" / "distill.py"
DIGITS = RECIPES / "distill.yaml"
OWN = RECIPES.parent / "own_images.yaml"


@pytest.fixture
def make_backbone(make_config: MakeConfig) -> Any:
    """Settings of a run in which nothing is said about labels."""

    def make(**changes: Any) -> DistillConfig:
        data = {"data": DataConfig(), "methods": [], "task": "none"}
        return make_config(**{**data, **changes})

    return make


def folder(config: DistillConfig, method: str = "fitnet") -> Path:
    return Path(config.out) / method / "seed0"


def test_a_backbone_from_images_alone(make_backbone: Any, capsys: Any) -> None:
    """Plain keys, an embedding head, the score after every epoch, and all numbers in the record."""
    config = make_backbone(train__epochs=3, student__name="test_efficientnet")
    (record,) = run(config)
    where = folder(config)
    names = [item["name"] for item in record["measures"]]  # type: ignore[attr-defined]
    measures = [measure.name for measure in TASKS["none"].measures]
    assert names == [name for name in measures if name != "translation_recall_at_1"]  # of texts
    assert record["num_labelled"] == 0
    model = timm.create_model(
        "test_efficientnet", num_classes=0, checkpoint_path=str(where / "student.safetensors")
    )
    pictures = torch.randn(2, 3, 32, 32)
    head = embedding.EmbeddingHead.from_bytes((where / embedding.HEAD).read_bytes())
    assert head(model.eval()(pictures)).shape == (2, WIDTH)
    described = json.loads((where / "config.json").read_text())
    assert (described["num_classes"], described["label_names"]) == (0, [])
    assert (described["task"], described["embedding_head"]) == ("none", embedding.HEAD)
    lines = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
    assert sum("test_neighbour_agreement" in line for line in lines) == 2
    assert not any("loss/ce" in line for line in lines)
    # No predictions, no page; a finished run is not repeated.
    assert not (where / "predictions.npz").exists()
    assert run(config)[0]["skipped"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS_WITHOUT_LABELS[:-2])
def test_methods_that_need_no_label(make_backbone: Any, method: str) -> None:
    """Each trains a backbone; embedding needs the outputs of task zeroshot, autodistil a slimmable student."""
    size = 64 if method == "at" else 32  # the map of 32 pixels is one place
    config = make_backbone(methods=[method], train__epochs=1, student__image_size=size)
    (record,) = run(config)
    assert record["method"] == method
    assert np.isfinite(record["score"]["value"])  # type: ignore[index]


def test_the_others_are_refused_before_anything_is_built(make_backbone: Any) -> None:
    """Methods that need labels or a classifier, partners, and settings that draw labels: one sentence each."""
    needing = {
        name
        for name, method in METHODS.items()
        if method.needs(options_of(make_backbone(), name)).labels
    }
    assert needing == METHODS.keys() - set(METHODS_WITHOUT_LABELS)
    for name in sorted(needing):
        with pytest.raises(ConfigError, match=r"--task none"):
            run(make_backbone(methods=["fitnet", name]))
    with pytest.raises(ConfigError, match="fixmatch"):
        run(make_backbone(partner="fixmatch"))
    with pytest.raises(ConfigError, match=r"--data\.labels_per_class 2"):
        run(make_backbone(data=DataConfig(labels_per_class=2)))
    with pytest.raises(ConfigError, match="nonsense"):
        run(make_backbone(task="nonsense"))


def test_what_auto_means(make_backbone: Any, store: FeatureStore, tmp_path: Path) -> None:
    """classify where labelled images are chosen or found, else none; methods follow."""
    config = make_backbone(task="auto")
    labelled = open_source(config.source)
    assert resolve(config, labelled, store).task == "classify"  # train/* and test/* have labels
    plain = open_source(dataclasses.replace(config.source, labels_from="none"))
    bare = write_store(tmp_path / "bare", plain)
    found = resolve(config, plain, bare)
    assert (found.task, found.methods, found.data.unlabelled) == ("none", ["fitnet"], ["*"])
    empty = dataclasses.replace(config, data=DataConfig(labelled=[]))
    assert resolve(empty, labelled, store).task == "none"
    chosen = dataclasses.replace(config, data=DataConfig(labels_per_class=3))
    assert resolve(chosen, plain, bare).task == "classify"
    for part in ("labelled", "test"):
        empty_part: Any = {part: []}
        broken = dataclasses.replace(config, task="classify", data=DataConfig(**empty_part))
        with pytest.raises(ConfigError, match=rf"--data\.{part}"):
            resolve(broken, labelled, store)


@pytest.mark.slow
def test_a_backbone_resumes_to_the_bit(make_backbone: Any) -> None:
    """Stopped in the middle of an epoch, with batch norm, keeping the best: the same bytes."""
    settings = {
        "student__name": "test_efficientnet", "train__epochs": 4, "train__checkpoint_every": 2,
        "train__keep_best": True, "train__lr": 0.02,
    }  # fmt: skip
    straight = make_backbone(**settings)
    (record,) = run(straight)

    files = ("student.safetensors", "evaluation.json", "metrics.jsonl", embedding.HEAD)
    check_resume(straight, "fitnet", after=9, files=files)
    scores = [
        line["test_neighbour_agreement"]
        for line in map(json.loads, (folder(straight) / "metrics.jsonl").read_text().splitlines())
        if "test_neighbour_agreement" in line
    ]
    steps = record["steps"] // 4  # type: ignore[operator]
    assert record["best_step"] == steps * (1 + int(np.argmax(scores)))
    assert record["score"]["value"] == max(scores)  # type: ignore[index]


def test_training_ends_when_nothing_gets_better(make_backbone: Any) -> None:
    """With a learning rate of almost nothing the score stays, and patience ends the run."""
    config = make_backbone(
        train__epochs=9, train__keep_best=True, train__patience=2, train__lr=1e-12
    )
    (record,) = run(config)
    assert record["steps"] == 3 * record["best_step"]  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"--train\.patience 2"):
        dataclasses.replace(config.train, keep_best=False)


def samples_of(config: DistillConfig) -> Samples:
    return joined.join_data(
        open_source(config.source),
        FeatureStore.open(config.store),
        without_labels(config.data),
        config.field,
    ).samples


def task_of(config: DistillConfig) -> Task:
    source, store = open_source(config.source), FeatureStore.open(config.store)
    config = resolve(config, source, store)
    return build_task(config, joined.join_data(source, store, config.data, config.field))


def ids_of(task: Task, indices: Indices) -> set[str]:
    return {task.data.samples.ids[index] for index in indices}


def test_a_test_part_that_is_named_is_measured(make_backbone: Any, tmp_path: Path) -> None:
    """Also where the pattern is the default's, by flag; the digits' recipe does not name one."""
    for flags, expected in (
        (["--data.test", "[test/*]"], ["test/*"]),
        (["--data.test", "[other/*]"], ["other/*"]),
        (["--data.views", "canonical"], []),
        ([], []),
    ):
        config = parse(DistillConfig, default_recipe=DIGITS, argv=flags, extend=kinds)
        assert without_labels(config.data).test == expected
    call = build_config(DistillConfig, {"data": {"test": ["test/*"]}}, kinds())
    assert without_labels(call.data).test == ["test/*"]


def test_held_out_images_follow_their_content(make_backbone: Any, tmp_path: Path) -> None:
    """Renamed files are held out as before; copies of a held-out image are held out too."""
    samples = samples_of(make_backbone())
    chosen = held_out(samples)
    assert len(chosen) == len(samples.ids) // 5  # few images: a fifth
    assert samples.hashes is not None
    hashes = {samples.hashes[index].tobytes() for index in chosen}
    unknown = dataclasses.replace(samples, hashes=np.zeros_like(samples.hashes))
    assert list(held_out(unknown)) == list(
        chosen
    )  # a store without hashes: the bytes of the images decide
    reverse = dataclasses.replace(samples, hashes=samples.hashes[::-1], ids=samples.ids[::-1])
    assert {reverse.hashes[index].tobytes() for index in held_out(reverse)} == hashes  # type: ignore[index]
    double = dataclasses.replace(
        samples,
        hashes=np.concatenate([samples.hashes, samples.hashes[chosen]]),
        ids=samples.ids + samples.ids[: len(chosen)],
    )
    among = held_out(double)
    assert len(among) == 2 * len({double.hashes[index].tobytes() for index in among})  # type: ignore[index]


@pytest.mark.parametrize("fold", [0, -1])
def test_a_backbone_never_sees_what_its_classifier_is_measured_on(
    make_backbone: Any, fold: int
) -> None:
    """``--data.holdout`` leaves out the same images with and without labels, of every seed and with groups."""
    for group in ("", r"(\d)\.png"):
        asked = DataConfig(holdout=0.2, fold=fold, group=group)
        classifier = task_of(make_backbone(task="classify", data=asked))
        backbone = task_of(make_backbone(data=asked))
        for seed in (0, 3):
            part = backbone.split(seed)
            test = ids_of(backbone, part.test)
            assert test == ids_of(classifier, classifier.split(seed).test)
            train = ids_of(backbone, part.unlabelled)
            assert train
            assert not train & test
            assert not group or not {name[-5] for name in train} & {name[-5] for name in test}


def test_images_without_labels_are_held_out_too(make_backbone: Any) -> None:
    """A share of all, where no image has a label."""
    asked = DataConfig(holdout=0.25, labelled=[])
    part = task_of(make_backbone(data=asked, source__labels_from="none")).split(0)
    assert 3 <= len(part.test) <= len(part.unlabelled)


def test_a_backbone_is_measured_again(make_backbone: Any, tmp_path: Path, capsys: Any) -> None:
    """On its own images as after training; on a labelled folder by k-NN, probe and few-shot accuracy, though its own
    images were said to have no labels."""
    config = make_backbone(train__epochs=2, source__labels_from="none")
    run(config)
    where = folder(config)
    again = evaluate(EvaluateConfig(model=str(where), workers=0))
    kept = json.loads((where / "evaluation.json").read_text())
    for name in ("neighbour_agreement", "explained_variance", "recall_at_10", "cka"):
        assert again[name] == pytest.approx(kept[name], rel=1e-5)
    other = draw_images(tmp_path / "a b", per_class=15, test_per_class=0, seed=3) / "train"
    found = evaluate(
        EvaluateConfig(model=str(where), source=SourceConfig(path=str(other)), workers=0)
    )
    assert found["num_images"] == 9
    assert found["num_labelled"] == 36
    few: Any = found["few_shot"]
    assert list(few) == ["1", "2", "5", "10"]
    assert 0 <= few["1"]["mean"] <= 1
    assert {"knn_top1", "linear_probe_top1"} <= found.keys()
    assert "teacher" not in found
    text = capsys.readouterr().out
    assert str(other) in text
    (tmp_path / "flat").mkdir()
    (other / "left" / "000.png").rename(tmp_path / "flat" / "0.png")
    with pytest.raises(ConfigError, match="flat"):
        evaluate(
            EvaluateConfig(
                model=str(where), source=SourceConfig(path=str(tmp_path / "flat")), workers=0
            )
        )


def test_fine_tuning_starts_from_a_run(make_backbone: Any, make_config: MakeConfig) -> None:
    """``--student.weights RUN`` takes the backbone, and the classifier starts fresh."""
    config = make_backbone(train__epochs=1)
    run(config)
    tuned = StudentConfig(name="test_convnext", image_size=32, weights=str(folder(config)))
    student = build_student(tuned, 3)
    state = load_file(folder(config) / "student.safetensors")
    for name, value in student.model.state_dict().items():
        assert name not in state or torch.equal(value, state[name])
    assert any("starts fresh" in note for note in student.notes)
    fine = make_config(student=tuned, methods=["labels"], train__epochs=1, out=config.out + "-fine")
    assert run(fine)[0]["score"]["name"] == "top1"  # type: ignore[index]
    # A classifier gives a backbone as well.
    back = dataclasses.replace(tuned, weights=str(Path(fine.out) / "labels" / "seed0"))
    assert any("left out" in note for note in build_student(back, 0).notes)


def test_too_few_images(make_backbone: Any, tmp_path: Path) -> None:
    """Refused with both numbers."""
    images = draw_images(tmp_path / "few", per_class=2, test_per_class=0)
    source = SourceConfig(kind="folder", path=str(images))
    store = write_store(tmp_path / "store", open_source(source))
    with pytest.raises(ConfigError, match=r"\b5\b.*\b1\b"):
        run(make_backbone(source=source, store=str(store.path)))


# --- numbers -------------------------------------------------------------------------------------------------------


def test_neighbours_are_those_of_a_plain_loop() -> None:
    """Cosine, without the image itself."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(30, 5, generator=generator)
    teacher = torch.randn(30, 7, generator=generator)
    shares = []
    for row in range(30):
        near = []
        for features in (student, teacher):
            cosine = F.cosine_similarity(features[row : row + 1], features, dim=1)
            order = [i for i in cosine.argsort(descending=True).tolist() if i != row]
            near.append(set(order[:10]))
        shares.append(len(near[0] & near[1]) / 10)
    assert embedding.neighbour_agreement(student, teacher) == pytest.approx(np.mean(shares))
    assert embedding.neighbour_agreement(teacher * 3, teacher) == 1


def test_numbers_of_a_perfect_and_a_blind_student() -> None:
    """A linear image of the teacher explains everything; noise explains nothing."""
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(400, 6, generator=generator)
    linear = teacher @ torch.randn(6, 9, generator=generator) + 2
    noise = torch.randn(400, 9, generator=generator)
    rows = torch.arange(100)
    head = embedding.fit_head(linear[100:], teacher[100:])
    found = embedding.compare_embeddings(linear[:100], teacher[:100], head, rows=rows)
    assert found["explained_variance"] > 0.999
    assert found["cosine"] > 0.999
    assert found["recall_at_1"] > 0.95
    blind = embedding.fit_head(noise[100:], teacher[100:])
    found = embedding.compare_embeddings(noise[:100], teacher[:100], blind, rows=rows)
    assert abs(found["explained_variance"]) < 0.1
    assert found["neighbour_agreement"] < 0.2


def test_a_damaged_head_is_refused(make_backbone: Any) -> None:
    """The record of the run holds its checksum, and the reader names the file."""
    config = make_backbone(train__epochs=1)
    run(config)
    record = read_record(folder(config))
    assert record is not None
    assert embedding.HEAD in record["files"]
    with pytest.raises(ConfigError, match="embedding_head"):
        embedding.EmbeddingHead.from_bytes(b"\\x08" * 40)


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--source.path", "PHOTOS"],
        ["--source.path=PHOTOS"],
        ["--source.kind", "tars", "--source.path", "T"],
    ],
)
@pytest.mark.parametrize("script", [False, True])
def test_images_of_ones_own_take_their_recipe(
    words: list[str], script: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``distill run`` and the script read own_images.yaml where images are named, and the digits' recipe without."""
    seen: list[DistillConfig] = []
    monkeypatch.setattr("distill.commands.train.run", seen.append)

    def start(*flags: str) -> DistillConfig:
        if script:
            monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
            with pytest.raises(SystemExit, match=r"^0$"):
                runpy.run_path(str(SCRIPT), run_name="__main__")
        else:
            assert cli.main(["run", *flags]) == 0
        return seen[-1]

    own = parse(DistillConfig, default_recipe=OWN, argv=[], extend=kinds)
    assert own.options["customkd"].w_general == 10
    assert own == dataclasses.replace(start(*words), source=own.source)
    assert own.student.pretrained == "auto"
    assert start().source.kind == start("--source.kind", "digits").source.kind == "digits"
    assert start("--config", str(DIGITS), *words).train == start().train


def test_two_commands_never_draw_into_one_folder(tmp_path: Path) -> None:
    """The lock of the pages is held while they are drawn."""
    with lock(tmp_path / ".report.lock", "pages"), pytest.raises(StoreBusy, match=str(tmp_path)):
        redraw(ReportConfig(out=str(tmp_path)))
