"""``distill search``: the students of a space by score, under limits, with parameters and multiply-adds beside."""

import dataclasses
import json
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
from tqdm import tqdm

from distill.config import DataConfig, StudentConfig
from distill.search.config import SearchConfig
from distill.search.evolution import evolve, smallest
from distill.search.found import Cost, Found, cells, described, limits, over
from distill.search.space import Candidate, Space
from featstore.display.text import columns, count
from featstore.errors import ConfigError, command
from featstore.files.atomic import write_bytes, write_json
from featstore.sources.config import SourceConfig

if TYPE_CHECKING:
    from distill.search.bench import Bench

SHOWN = 10
"""Students in the printed table."""
SCORED = "scored.jsonl"
Say = Callable[[str], None]


def run(config: SearchConfig) -> list[Found]:
    """Search, or compare scores with finished runs. Returns the students that fit, the best first.

    Raises:
        FeatstoreError: something the user can mend; the same command resumes a search that was stopped.
    """
    space = None if config.against or config.slices else Space(config.space)
    from distill.commands import train
    from distill.search import judge, slices
    from distill.search.bench import Bench
    from distill.tasks import build_task
    from distill.training.run_folder import lock
    from featstore.extraction.accelerator import start_accelerator

    accelerator = start_accelerator()
    if accelerator.num_processes > 1:
        raise ConfigError("a search runs in one process: accelerate launch --num_processes 1 ...")
    asked = slices.settings_of(config.slices[0]) if config.slices else config.run()
    resolved, data = train.prepare_runs(asked)
    task = build_task(resolved, data)
    bench = Bench(config, task, accelerator.device)
    out = Path(config.out)
    with lock(out / ".search.lock", f"--out {out.absolute()}"):
        if config.slices:
            return list(slices.run(config, bench, task, accelerator))
        if space is None:
            judge.run(config, bench)
            return []
        return _report(config, space, _Search(config, space, bench))


class _Search:
    """Costs and scores of the students of one search, kept in a file as they are found."""

    def __init__(self, config: SearchConfig, space: Space, bench: "Bench") -> None:
        self.config, self.space, self.bench = config, space, bench
        self.refused: dict[str, str] = {}
        self._costs: dict[Candidate, Cost | None] = {}
        self._path = Path(config.out) / SCORED
        settings = [config.score, dataclasses.asdict(config.probe), config.limit.threads, bench.key]
        self._key = json.dumps(settings)
        self._known = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        """What an earlier search with the same settings found, by student."""
        known: dict[str, dict[str, Any]] = {}
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        if text and not text.endswith("\n"):  # cut off when the search was stopped
            text = text[: text.rfind("\n") + 1]
            write_bytes(self._path, text.encode())
        for number, line in enumerate(text.splitlines(), 1):
            try:
                values = json.loads(line)
                if values.pop("crc32c") != _checksum(values):
                    raise ValueError("checksum")
                key, student = values["key"], values["student"]
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ConfigError(
                    f"{self._path.absolute()}: line {number} is damaged. Delete the file to score all again."
                ) from None
            if key == self._key:
                known[student] = known.get(student, {}) | values
        return known

    def _remembered(self, config: StudentConfig, name: str, make: Callable[[], Any]) -> Any:
        """A number of a student, read from the file or added to it; a ConfigError is remembered as text."""
        student = json.dumps(dataclasses.asdict(config), sort_keys=True)
        values = self._known.setdefault(student, {})
        if name not in values:
            try:
                values[name] = make()
            except ConfigError as error:
                values[name] = str(error)
            line = {"key": self._key, "student": student, name: values[name]}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "crc32c": _checksum(line)}) + "\n")
        if isinstance(values[name], str):
            self.refused.setdefault(student, values[name])
            return None
        return values[name]

    def cost(self, candidate: Candidate) -> Cost | None:
        """Parameters and multiply-adds; None if the student cannot be built."""
        if candidate not in self._costs:
            config = self.space.student(candidate)
            values = self._remembered(
                config, "cost", lambda: dataclasses.asdict(self.bench.cost(config))
            )
            self._costs[candidate] = None if values is None else Cost(**values)
        return self._costs[candidate]

    def size(self, candidate: Candidate) -> tuple[float, ...]:
        """How far a student is above the limits, then its size."""
        cost = self.cost(candidate)
        if cost is None:
            return (float("inf"),)
        return (over(cost, self.config.limit), cost.macs, cost.parameters)

    def fits(self, candidate: Candidate) -> bool:
        """Whether a student meets all limits; its latency is measured if it meets the others."""
        cost, limit = self.cost(candidate), self.config.limit
        if cost is None or over(cost, limit) > 1:
            return False
        if limit.latency_ms and cost.latency_ms is None:
            config = self.space.student(candidate)
            found = self._remembered(config, "latency_ms", lambda: self.bench.latency_ms(config))
            if found is None:
                return False
            cost = self._costs[candidate] = dataclasses.replace(cost, latency_ms=found)
        return over(cost, limit) <= 1

    def score(self, candidate: Candidate) -> float | None:
        """The score of a student that fits."""
        if not self.fits(candidate):
            return None
        cost, name = self.cost(candidate), self.config.score
        assert cost is not None
        config = self.space.student(candidate)
        found = self._remembered(
            config, "scores", lambda: self.bench.scores(config, cost.macs, [name])[name]
        )
        return None if found is None else statistics.fmean(found)

    def start(self) -> Candidate:
        """The smallest student."""
        best = smallest(self.space, self.size)
        if not self.fits(best) and self.space.size <= self.config.tries:
            best = min(self.space, key=lambda item: (not self.fits(item), self.size(item)))
        if self.fits(best):
            return best
        cost = self.cost(best)
        if cost is None:
            raise ConfigError(
                f"--space: no student was found that can be built. {self.space.text(best)}: {self._first()}"
            )
        raise ConfigError(
            f"--limit: no student was found that fits. The smallest, {self.space.text(best)}, has "
            f"{described(cost)}; the limit is {limits(self.config.limit)}. Raise it, or add smaller students."
        )

    def _first(self) -> str:
        return next(iter(self.refused.values()), "")

    def run(self) -> list[Found]:
        """Students that fit, the best first."""
        config, start = self.config, self.start()
        found = evolve(
            self.space, start, self.score, tries=config.tries, population=config.population,
            mutations=config.mutations, seed=config.seed,
        )  # fmt: skip
        students = [
            self._found(item)
            for item in tqdm(found, desc="search", unit="student", disable=None, leave=False)
        ]
        if not students:
            raise ConfigError(f"--score {config.score}: no student has one. {self._first()}")
        return sorted(students, key=lambda item: (-item.score, item.cost.macs))

    def _found(self, candidate: Candidate) -> Found:
        cost, score = self.cost(candidate), self.score(candidate)
        assert cost is not None
        assert score is not None
        return Found(self.space.text(candidate), self.space.student(candidate), score, cost)


def _checksum(line: dict[str, Any]) -> str:
    data = json.dumps(line, sort_keys=True).encode()
    return f"{google_crc32c.value(data):08x}"


def _report(config: SearchConfig, space: Space, search: _Search, say: Say = print) -> list[Found]:
    """Run the search, write its files and print what was found."""
    from distill.reports.tables import write_csv

    say(
        f"space     {count(space.size, 'student')} in {count(len(space.families), 'family', 'families')}"
    )
    say(f"limit     {limits(config.limit)}")
    found = search.run()
    largest = max(found, key=lambda item: (item.cost.parameters, item.cost.macs))
    rows = [item.row() for item in found]
    out = Path(config.out)
    write_csv(out / "search.csv", rows)
    plain = {
        "settings": dataclasses.asdict(config),
        "student": dataclasses.asdict(found[0].student),
    }
    write_json(out / "search.json", {**plain, "found": rows[0]})
    shown = [*found[:SHOWN], *([largest] if largest not in found[:SHOWN] else [])]
    say(f"\n{columns(cells(shown, config.score))}\n")
    if search.refused:
        number = count(len(search.refused), "student")
        say(f"note: {number} left out, e.g.: {next(iter(search.refused.values()))}")
    place = found.index(largest) + 1
    say(
        f"note: the score is no measurement. The largest student that fits is {largest.text}, number {place} of "
        f"{len(found)}{': train both' if place > 1 else ''}."
    )
    say(f"files: {out / 'search.csv'}, {out / 'search.json'}, {search.bench.probe_path}")
    say(f"\nnext: {next_command(config, found[0].student)}")
    return found


def next_command(config: SearchConfig, student: StudentConfig) -> str:
    flags = {"store": config.store, "field": config.field, "source.kind": config.source.kind}
    flags |= _changed("source", config.source, SourceConfig())
    flags |= _changed("data", config.data, DataConfig())
    flags |= {"student.name": student.name} | _changed("student", student, StudentConfig())
    words = [part for name, value in flags.items() for part in (f"--{name}", value)]
    return f"{command('distill')} {shlex.join(words)}"


def _changed(section: str, values: Any, default: Any) -> dict[str, str]:
    """Flags for the settings of a section that are not at their defaults."""
    found: dict[str, str] = {}
    for item in dataclasses.fields(values):
        name, value = f"{section}.{item.name}", getattr(values, item.name)
        usual = getattr(default, item.name)
        if dataclasses.is_dataclass(value):
            found |= _changed(name, value, usual)
        elif value != usual:
            found[name] = value if isinstance(value, str) else json.dumps(value)
    return found
