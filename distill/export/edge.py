"""One finished run -> one export folder: every format, its accuracy and parity on the run's own test images, the rule
of the preprocessing, and a card. The folder appears when it is whole.
"""

# N test images, K classes

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save

from distill.export import (
    browser,
    card,
    executorch_model,
    numbers,
    onnx_model,
    preprocessing,
    program,
    qat,
    timm_folder,
)
from distill.export.config import ExportConfig, Format, wants
from distill.export.finished import FinishedRun, open_data, read_finished_run
from distill.export.int8 import make_int8
from distill.export.manifest import MANIFEST, describe_export
from distill.export.parity import answers, torch_runner
from distill.export.quiet import reason
from distill.export.work import Say, Work
from distill.student.files import TASK_HEAD, student_config
from distill.student.model import Student, build_student
from distill.student.start_weights import load_saved
from distill.student.tapped import TappedModel
from distill.training import run_folder
from distill.training.saved_student import plain_state
from featstore.errors import ConfigError
from featstore.files.atomic import make_folder, refused, sync_tree, write_bytes, write_json


def export_run(config: ExportConfig, *, say: Say = print) -> dict[str, Any]:
    """Take a finished run to the edge.

    Returns:
        What is also written to export.json.

    Raises:
        ConfigError: no finished run; or a format that was named could not be made: the others are written.
        StoreBusy: another export writes to the folder.
        StoreWriteError: the disk refused. Nothing but a temporary folder is left, which the next start clears.
    """
    run = read_finished_run(Path(config.model))
    task = run.described.get("task", "classify")
    if config.browser and task != "classify":
        raise ConfigError(
            f"--browser true: its page shows classes, the task of this run is {task}."
        )
    refuse_missing_runtimes(config)
    out = Path(config.out or run.folder / "export")
    refuse_other_folder(out)
    web = browser.web_runtime(config.browser_runtime) if config.browser else None
    data = open_data(run, store=config.store, images=config.images)
    spec = preprocessing.input_spec(
        run.student, baked=config.bake_normalisation, uint8=config.uint8_input
    )
    lock = run_folder.lock(out.with_name(f".{out.name}.lock"), str(out.absolute()))
    with lock, staged(out) as folder:
        work = Work(config, run, data, spec, folder, say)
        work.notes += [*data.images.samples.notes, *data.part.notes]
        say(f"run       {run.folder}: {run.record['method']}, seed {run.record['seed']}")
        say(f"student   {run.described['architecture']}, {data.part.test.size:,} test images")
        make_float(work)
        logits = answers(work.pictures(data.part.test), work.runners)
        if wants(config, "int8") and "int8" not in work.skipped:
            attempt(work, "int8", lambda: make_int8(work, logits))
        manifest = describe_export(work, logits)
        write_preprocessing(work)
        if config.latency.rounds:
            say(f"\n{numbers.text(numbers.write_numbers(work))}\n")
        if web is not None:
            manifest["browser"] = make_browser_page(work, web)
        finish_export(work, manifest)
    lacking = [f"{name} ({why})" for name, why in work.skipped.items() if name in config.formats]
    if lacking:
        raise ConfigError(
            f"--formats: not made: {'; '.join(lacking)}. The other formats are in {out.absolute()}."
        )
    return manifest


def refuse_missing_runtimes(config: ExportConfig) -> None:
    """Refuse at once what was named and cannot be made. Raises ConfigError: names the packages."""
    if {"onnx", "int8"} & set(config.formats):
        onnx_model.require_installed()
    if "executorch" in config.formats and not executorch_model.installed():
        raise ConfigError(executorch_model.MISSING)


def refuse_other_folder(out: Path) -> None:
    """Refuse to replace a folder that is not an export. Raises ConfigError: it holds something else."""
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"--out {out}: is there and is not an export ({MANIFEST} is missing), so it is not replaced. Choose "
            "another --out."
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Temporary folder beside ``out`` that replaces it at the end; after an error ``out`` is unchanged.

    What an interrupted fine-tuning has left is kept for the next start; all else begins anew.
    """
    folder = out.with_name(f".partial-{out.name}")
    with refused(out, 0):
        make_folder(folder)
        for item in folder.iterdir():
            if item.name != qat.FOLDER:
                shutil.rmtree(item) if item.is_dir() else item.unlink()
        try:
            yield folder
        except BaseException:
            if not (folder / qat.FOLDER).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        sync_tree(folder)
        old = out.with_name(f".partial-{out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        folder.rename(out)
        shutil.rmtree(old, ignore_errors=True)


def make_float(work: Work) -> None:
    """All formats in floating point, each loaded again from its file."""
    run, config, folder = work.run, work.config, work.folder
    work.runners["pytorch"] = torch_runner(run.student)
    if wants(config, "safetensors"):
        work.files["safetensors"] = timm_folder.write_timm_folder(
            folder, run.student, run.rule, described=run.described, teachers=run.teachers
        )
        if run.student.task_head is not None:
            data = save(plain_state(run.student.task_head))
            write_bytes(folder / TASK_HEAD, data)
            work.files["safetensors"].append(folder / TASK_HEAD)
        if run.embedding_head is not None:
            work.files["safetensors"].append(run.embedding_head.write(folder))
        work.runners["safetensors"] = torch_runner(reload(folder, run))
    module = preprocessing.graph_module(run.student, work.spec, run.embedding_head)
    if wants(config, "onnx") or wants(config, "int8"):
        missing = onnx_model.missing_packages()
        if missing:
            why = f"{', '.join(missing)} not installed: {onnx_model.MISSING}"
            work.skip("onnx", why)
            work.skip("int8", why)
    traced: list[program.Program] = []  # traced once, for two formats

    def trace() -> program.Program:
        if not traced:
            traced.append(program.trace(module, work.spec))
        return traced[0]

    def make_onnx() -> None:
        path = onnx_model.write_onnx(folder, trace(), work.spec, outputs=work.outputs)
        work.files["onnx"] = [path]
        work.runners["onnx"] = onnx_model.runner(path, work.spec)

    def make_program() -> None:
        path = program.write_program(folder, trace())
        work.files["program"] = [path]
        work.runners["program"] = program.runner(path, work.spec)

    def make_executorch() -> None:
        path, left = executorch_model.write_executorch(folder, module, work.spec)
        work.files["executorch"], work.extra["executorch"] = [path], left
        work.runners["executorch"] = executorch_model.runner(path, work.spec)

    if "onnx" not in work.skipped and _wants_graph(config):
        attempt(work, "onnx", make_onnx)
        if "onnx" not in work.files:
            work.skip("int8", "it is made from the ONNX file")
    if wants(config, "program"):
        attempt(work, "program", make_program)
    if wants(config, "executorch"):
        if executorch_model.installed():
            attempt(work, "executorch", make_executorch)
        else:
            work.skip("executorch", executorch_model.MISSING)
    for name, files in work.files.items():
        work.say(f"made      {name}: {', '.join(path.name for path in files)}")


def attempt(work: Work, name: Format, make: Callable[[], None]) -> None:
    """Make one format; where it fails, the others are kept and the reason is recorded."""
    try:
        make()
    except ConfigError as error:
        work.files.pop(name, None)
        work.runners.pop(name, None)
        work.skip(name, str(error))


def _wants_graph(config: ExportConfig) -> bool:
    return wants(config, "onnx") or wants(config, "int8")


class Reloaded:
    """A model as timm loads it from the folder, where the student was."""

    def __init__(self, model: torch.nn.Module, student: Student) -> None:
        self.model, self.mean, self.std = model, student.mean, student.std

    def plain(self) -> torch.nn.Module:
        return self.model


def reload(folder: Path, run: FinishedRun) -> Any:
    """What ``timm.create_model`` or the user's function makes of the folder, with the task's head if it has one."""
    student = run.student
    if isinstance(student.model, TappedModel):
        loaded = build_student(student_config(run.described), student.num_classes)
        load_saved(loaded.model, folder / timm_folder.WEIGHTS)
        return _with_task_head(loaded, student, folder)
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # timm raises many unrelated types
        raise ConfigError(
            f"timm {timm.__version__} does not load what was exported: {reason(error)}."
        ) from error
    if student.task_head is None:
        return Reloaded(model.eval(), student)
    loaded = copy.deepcopy(student)
    loaded.model.load_state_dict(model.state_dict())
    return _with_task_head(loaded, student, folder)


def _with_task_head(loaded: Student, student: Student, folder: Path) -> Student:
    if student.task_head is not None:
        loaded.task_head = copy.deepcopy(student.task_head)
        loaded.task_head.load_state_dict(load_file(folder / TASK_HEAD))
    return loaded.eval()


def write_preprocessing(work: Work) -> None:
    """The rule and its test vectors, with the answer of every file."""
    pixels = preprocessing.reference_pixels(work.spec, work.run.rule)
    preprocessing.write_preprocessing(
        work.folder,
        work.spec,
        work.run.rule,
        label_names=work.run.label_names,
        logits={name: runner(pixels)[0] for name, runner in work.runners.items()},
        meaning=work.data.task.meaning,
        output=work.outputs[0],
    )


def make_browser_page(work: Work, web: browser.WebRuntime) -> dict[str, Any]:
    """Write the page that runs the ONNX files; return its values for the manifest."""
    names = [name for name in browser.FILES if name in work.files and wants(work.config, name)]
    if not names:
        raise ConfigError(f"--browser true: there is no ONNX file to run. {onnx_model.MISSING}")
    title = work.run.described["architecture"] + (", distilled" if work.run.teachers else "")
    path = browser.write_browser_page(work.folder, title=title, names=names, runtime=web)
    work.say(f"made      browser: {browser.NAME}, {path.stat().st_size / 1e6:.1f} MB")
    return {
        "file": browser.NAME,
        "bytes": path.stat().st_size,
        "runtime": f"{browser.PACKAGE} {web.version}",
    }


def finish_export(work: Work, manifest: dict[str, Any]) -> None:
    """Files that describe the others; of the fine-tuning, its record without its checkpoint."""
    short = work.folder / qat.FOLDER
    for path in sorted(short.rglob("*"), reverse=True):
        if path.is_file() and path.name not in ("run.json", "metrics.jsonl", "config.yaml"):
            path.unlink()
    if work.config.formats and "onnx" not in work.config.formats:
        (work.folder / onnx_model.NAME).unlink(missing_ok=True)
    write_json(work.folder / MANIFEST, manifest)
    card.write_export_card(work.folder, manifest, work.run, work.data)
