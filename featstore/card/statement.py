"""Title, authors and licences as given by the authors of a store, kept in the front matter of its card."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featstore.card.licences import known
from featstore.errors import ConfigError, first_line
from featstore.files.untrusted import read_plain
from featstore.format.manifest import Manifest

KEY = "featstore"  # key of the front matter with our data; a file without it is never overwritten
MOST_BYTES = 4 * 2**20  # longest card that is read
NOTES_BEGIN = (
    "<!-- notes: what stands between these two lines is kept when the card is written again -->"
)
NOTES_END = "<!-- end of notes -->"


class Statement(BaseModel):
    """Statements of the authors."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: str = ""
    authors: tuple[str, ...] = ()
    homepage: str = ""
    image_licence: str = ""
    teacher_licences: dict[str, str] = Field(default_factory=dict)
    """By name of the teacher in the manifest; takes precedence over the manifest."""

    def changed(
        self,
        *,
        title: str | None = None,
        authors: Sequence[str] = (),
        homepage: str | None = None,
        image_licence: str | None = None,
        teacher_licences: Mapping[str, str] | None = None,
    ) -> "Statement":
        """A copy with the given values; None leaves a value, "" removes it."""
        if homepage and not re.fullmatch(r"https?://[!-~]+", homepage):
            raise ConfigError(f"homepage {homepage!r} is not a URL; expected https://...")
        given = {"title": title, "homepage": homepage, "image_licence": image_licence}
        values: dict[str, Any] = {
            name: value.strip() for name, value in given.items() if value is not None
        }
        if authors:
            values["authors"] = tuple(name for name in authors if name)
        if teacher_licences:
            merged = self.teacher_licences | dict(teacher_licences)
            values["teacher_licences"] = {name: text for name, text in merged.items() if text}
        return self.model_copy(update=values)


@dataclass(frozen=True)
class Kept:
    """Content of an existing card that is not in the store."""

    statement: Statement = field(default_factory=Statement)
    notes: str = ""  # markdown between the two marks


def read_card(path: Path) -> Kept:
    """Read the statement and the notes of a card; both are empty if there is no card."""
    try:
        data = read_plain(path.parent, path.name, most_bytes=MOST_BYTES)
    except FileNotFoundError:
        return Kept()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    text = data.decode("utf-8", "replace")
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if front is None or f"\n{KEY}:" not in front[1]:
        raise ConfigError(
            f"{path}: was not written by `featstore card` and is not overwritten. Move it, or write the card elsewhere "
            "with --out FILE."
        )
    try:
        statement = Statement.model_validate(yaml.safe_load(front[1])[KEY]["statement"])
    except (yaml.YAMLError, ValidationError, KeyError, TypeError, RecursionError) as error:
        reason = first_line(error) or type(error).__name__
        raise ConfigError(
            f"{path}: the front matter under {KEY!r} cannot be read ({reason}). Repair it, or delete the file and "
            "give title, authors and licences again."
        ) from None
    _, _, after = text.partition(f"{NOTES_BEGIN}\n")
    notes, mark, _ = after.partition(NOTES_END)
    return Kept(statement, notes.strip("\n") if mark else "")


def teacher_licence(manifest: Manifest, statement: Statement, name: str) -> str:
    """Licence of a teacher as stated by the authors, else by the manifest; "" if not stated."""
    return statement.teacher_licences.get(name, "") or manifest.teachers[name].licence


def hub_licence(licences: Sequence[str]) -> dict[str, str]:
    """The licence of a store as front matter of the hub.

    Args:
        licences: of the images and of every teacher, "" if unknown.

    Returns:
        ``license``, and ``license_name`` if it is not one of the hub's. If one licence is unknown, the whole is.
    """
    if not licences or not all(licences):
        return {"license": "unknown"}
    names = sorted({text.strip().lower().replace(" ", "-") for text in licences})
    licence = known(names[0])
    if len(names) == 1 and licence is not None and licence.on_hub:
        return {"license": names[0]}
    return {"license": "other", "license_name": "-and-".join(names)[:200]}
