"""What only the authors of a store can say. It is kept in the front matter of the card, so that it is said once."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featstore.card.licences import known
from featstore.errors import ConfigError
from featstore.files.untrusted import read_plain
from featstore.format.manifest import Manifest

KEY = "featstore"
"""Of the front matter: what of it is ours, and the mark of a card that may be written again."""
MOST_BYTES = 4 * 2**20
"""A card that is longer is not one of ours."""
NOTES_BEGIN = (
    "<!-- notes: what stands between these two lines is kept when the card is written again -->"
)
NOTES_END = "<!-- end of notes -->"


class Statement(BaseModel):
    """What the authors say."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: str = ""
    authors: tuple[str, ...] = ()
    homepage: str = ""
    image_licence: str = ""
    teacher_licences: dict[str, str] = Field(default_factory=dict)
    """By name of the teacher in the manifest; where the manifest says something else, this counts."""

    def changed(
        self,
        *,
        title: str | None = None,
        authors: Sequence[str] = (),
        homepage: str | None = None,
        image_licence: str | None = None,
        teacher_licences: Mapping[str, str] | None = None,
    ) -> "Statement":
        """The same with what is given anew; None and nothing leave what there is, "" takes it away.

        Raises:
            ConfigError: the homepage is no address on the web.
        """
        if homepage and not re.fullmatch(r"https?://[!-~]+", homepage):
            raise ConfigError(f"homepage {homepage!r} is no address; expected https://...")
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
    """What an existing card holds that is not in the store.

    Attributes:
        statement: of the authors.
        notes: Markdown that was written by hand between the two marks.
    """

    statement: Statement = field(default_factory=Statement)
    notes: str = ""


def read_card(path: Path) -> Kept:
    """Take from a card what has to be kept; nothing where there is no card.

    Raises:
        ConfigError: there is a file that this package did not write.
    """
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
            f"{path}: was not written by `featstore card`, so it is left as it is. Move it away, or write the card "
            "somewhere else with --out FILE."
        )
    try:
        statement = Statement.model_validate(yaml.safe_load(front[1])[KEY]["statement"])
    except (yaml.YAMLError, ValidationError, KeyError, TypeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path}: the front matter under {KEY!r} cannot be read ({reason}). Repair it, or delete the file and "
            "state title, authors and licences again."
        ) from None
    _, _, after = text.partition(f"{NOTES_BEGIN}\n")
    notes, mark, _ = after.partition(NOTES_END)
    return Kept(statement, notes.strip("\n") if mark else "")


def teacher_licence(manifest: Manifest, statement: Statement, name: str) -> str:
    """What is stated of a teacher's licence: by the authors, else by the manifest; "" where nobody does."""
    return statement.teacher_licences.get(name, "") or manifest.teachers[name].licence


def hub_licence(licences: Sequence[str]) -> dict[str, str]:
    """The licence of a store in the terms of the hub.

    Args:
        licences: of the images and of every teacher, "" where one is not known.

    Returns:
        ``license``, and ``license_name`` where the hub knows no name for it. What a receiver may do follows from all
        of them together, so one that is not known makes the whole unknown.
    """
    if not licences or not all(licences):
        return {"license": "unknown"}
    names = sorted({text.strip().lower().replace(" ", "-") for text in licences})
    licence = known(names[0])
    if len(names) == 1 and licence is not None and licence.on_hub:
        return {"license": names[0]}
    return {"license": "other", "license_name": "-and-".join(names)[:200]}
