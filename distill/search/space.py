"""The students that are searched: settings of a student in which some values are choices."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from distill.config import StudentConfig
from featstore.cli.schema import build_config
from featstore.errors import ConfigError

ONE_OF, RANGE = "one_of", "range"
MOST_VALUES = 10_000

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Gene:
    """One choice of a family: where it stands in the settings, and its values."""

    path: Path
    values: list[Any]

    @property
    def name(self) -> str:
        """Without the section that most arguments are in."""
        return ".".join(str(part) for part in self.path if part != "model_args")


@dataclass(frozen=True)
class Candidate:
    """One student of a space: its family, and of every gene the number of a value."""

    family: str
    choices: tuple[int, ...]


class Space:
    """Students by family.

    Raises:
        ConfigError: a family is no set of settings of a student, or a choice has no value.
    """

    def __init__(self, families: Mapping[str, Any]) -> None:
        self._settings = {}
        self._genes: dict[str, list[Gene]] = {}
        for name, settings in families.items():
            if not isinstance(settings, dict):
                raise ConfigError(f"--space.{name}: expected settings of a student, {{name: ...}}.")
            self._settings[name] = settings
            self._genes[name] = list(_genes(settings, (), name))
            self.student(self.first(name))
        self.families = list(families)

    @property
    def size(self) -> int:
        """Number of students."""
        return sum(math.prod(len(gene.values) for gene in genes) for genes in self._genes.values())

    def genes(self, family: str) -> Sequence[Gene]:
        return self._genes[family]

    def first(self, family: str) -> Candidate:
        """The student of the first values."""
        return Candidate(family, (0,) * len(self._genes[family]))

    def __iter__(self) -> Iterator[Candidate]:
        for family, genes in self._genes.items():
            for choices in product(*(range(len(gene.values)) for gene in genes)):
                yield Candidate(family, choices)

    def draw(self, draws: random.Random) -> Candidate:
        """Any student; every family is as likely."""
        family = draws.choice(self.families)
        return Candidate(family, tuple(draws.randrange(len(g.values)) for g in self._genes[family]))

    def mutate(self, parent: Candidate, mutations: int, draws: random.Random) -> Candidate:
        """A student of the same family that differs in so many choices (in all, if there are fewer)."""
        genes, choices = self._genes[parent.family], list(parent.choices)
        free = [place for place, gene in enumerate(genes) if len(gene.values) > 1]
        for place in draws.sample(free, min(mutations, len(free))):
            step = draws.randrange(1, len(genes[place].values))
            choices[place] = (choices[place] + step) % len(genes[place].values)
        return Candidate(parent.family, tuple(choices))

    def student(self, candidate: Candidate) -> StudentConfig:
        """Settings of a student."""
        genes = self._genes[candidate.family]
        chosen = {
            gene.path: gene.values[n] for gene, n in zip(genes, candidate.choices, strict=True)
        }
        try:
            config = build_config(
                StudentConfig, _filled(self._settings[candidate.family], (), chosen)
            )
        except ConfigError as error:
            raise ConfigError(f"--space.{candidate.family}: {error}") from None
        if config.pretrained or config.weights or config.freeze:
            raise ConfigError(
                f"--space.{candidate.family}: pretrained, weights and freeze are of training; students are scored with "
                "random weights. Leave them out."
            )
        return config

    def text(self, candidate: Candidate) -> str:
        """A student in words: its family and what was chosen."""
        genes = self._genes[candidate.family]
        chosen = [
            f"{gene.name}={gene.values[n]}".replace(" ", "")
            for gene, n in zip(genes, candidate.choices, strict=True)
            if len(gene.values) > 1
        ]
        return " ".join([candidate.family, *chosen])


def _genes(value: Any, path: Path, family: str) -> Iterator[Gene]:
    if isinstance(value, dict) and value.keys() & {ONE_OF, RANGE}:
        yield Gene(path, _values(value, f"--space.{'.'.join(map(str, (family, *path)))}"))
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _genes(inner, (*path, key), family)


def _values(choice: dict[str, Any], where: str) -> list[Any]:
    """The values of ``{one_of: [...]}`` or ``{range: [lowest, highest, step]}``."""
    if list(choice) == [ONE_OF] and isinstance(choice[ONE_OF], list) and choice[ONE_OF]:
        return list(choice[ONE_OF])
    limits = choice.get(RANGE)
    if list(choice) == [RANGE] and isinstance(limits, list) and len(limits) in (2, 3):
        numbers = all(type(item) in (int, float) for item in limits)
        low, high, step = (*limits, 1)[:3] if numbers else (1, 0, 1)
        if step > 0 and 0 <= high - low <= step * MOST_VALUES:
            count = math.floor((high - low) / step + 1e-9) + 1
            return [
                low + step * n if isinstance(step, int) else round(low + step * n, 9)
                for n in range(count)
            ]
    raise ConfigError(
        f"{where}: {choice}: expected {{one_of: [VALUE, ...]}} or {{range: [LOWEST, HIGHEST, STEP]}}."
    )


def _filled(value: Any, path: Path, chosen: Mapping[Path, Any]) -> Any:
    """Settings with the chosen values in the places of the choices."""
    if path in chosen:
        return chosen[path]
    if isinstance(value, dict):
        return {key: _filled(inner, (*path, key), chosen) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, (*path, number), chosen) for number, inner in enumerate(value)]
    return value
