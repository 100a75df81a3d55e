"""``featstore card``."""

import argparse
import sys
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from featstore.card.statement import Statement, read_card
from featstore.cli.arguments import STORE, Arguments, positive, repeated, show, value
from featstore.display.text import count
from featstore.errors import ConfigError, StoreBusy, StoreWriteError
from featstore.files.atomic import TEMPORARY_PREFIX, write_bytes
from featstore.files.locks import exclusive
from featstore.format.file_names import CARD_NAME, CARD_PAGE_NAME, SIGNATURE_NAME
from featstore.format.manifest import Manifest
from featstore.reading.store import FeatureStore
from featstore.writing.commit import remove_leftovers

DESCRIPTION = """\
Describe a store. Without --html: writes README.md into the store, with the front matter of the Hugging Face hub. Title,
authors and licences given as options are kept in it, and so are your own notes between its two note lines. With --html:
writes one HTML page with statistics of the features, a searchable map of the images, duplicates and times; it opens
without a network and needs the extra "card". Neither changes the store's fingerprint or any other file.
"""


ARGUMENTS = {
    "store": STORE,
    "--out": value(f"card to write or read (default: STORE/{CARD_NAME})", Path),
    "--html": value(
        f"write the page instead (default: STORE/{CARD_PAGE_NAME})",
        Path,
        nargs="?",
        const=Path(),
        metavar="FILE",
    ),
}

GROUPS: dict[str, Arguments] = {
    "statements of the authors (kept in the card; an empty text removes one)": {
        "--title": value("name of the store"),
        "--author": repeated("may be repeated", "NAME"),
        "--homepage": value("page with more information", metavar="URL"),
        "--image-licence": value(
            "licence of the images, e.g. cc-by-4.0, or any text", metavar="LICENCE"
        ),
        "--teacher-licence": repeated(
            "licence of a teacher's weights if the manifest has none; NAME if there are several",
            "[NAME=]LICENCE",
        ),
    },
    "the page": {
        "--field": value("field for map and comparison (default: cls)", default=""),
        "--points": value(
            "most images in map and statistics (default: 4000)", positive, default=4000
        ),
        "--images": value(
            "folder of the images: show small pictures of them", Path, metavar="FOLDER"
        ),
    },
}


def run(arguments: argparse.Namespace) -> int:
    """Write the card or the page."""
    store = FeatureStore.open(arguments.store)
    card = arguments.out or arguments.store / CARD_NAME
    kept = read_card(card)
    statement = kept.statement.changed(
        title=arguments.title,
        authors=arguments.author,
        homepage=arguments.homepage,
        image_licence=arguments.image_licence,
        teacher_licences=_teacher_licences(arguments.teacher_licence, store.manifest),
    )
    if arguments.html is not None:
        return _write_page(arguments, store, statement)
    from featstore.card.markdown import missing, write_card

    if any(arguments.store.glob(f"{TEMPORARY_PREFIX}*")):  # of a card that was interrupted
        with suppress(StoreBusy, StoreWriteError), exclusive(arguments.store):
            remove_leftovers(arguments.store)
    write_bytes(card, write_card(store, statement, kept.notes).encode())
    unsaid = missing(store.manifest, statement)
    lines = [f"not stated   {line}" for line in unsaid]
    lines.insert(0, f"{card}: written{_signed(arguments.store, card)}")
    return show(arguments, {"card": str(card), "not_stated": unsaid}, lines)


def _write_page(arguments: argparse.Namespace, store: FeatureStore, statement: Statement) -> int:
    visible = sys.stderr.isatty()

    def step(name: str) -> None:
        """Show the current step: in a bar on a terminal, else as a line."""
        if visible:
            bar.set_description_str(name)
        elif not arguments.json:
            print(f"  {name}", file=sys.stderr, flush=True)

    if not arguments.json:
        rows = count(store.num_rows, "row")
        print(f"{arguments.store}: {rows}, computing the page", file=sys.stderr, flush=True)
    try:
        from featstore.card.findings import look
        from featstore.card.page import build_store_page, html
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the page needs {error.name}, which is not installed: pip install 'featstore-distill[card]'"
        ) from None
    path = arguments.html if arguments.html != Path() else arguments.store / CARD_PAGE_NAME
    hidden = arguments.json or not visible
    with tqdm(disable=hidden, file=sys.stderr, leave=False, bar_format="{desc} [{elapsed}]") as bar:
        findings = look(
            store,
            field=arguments.field,
            points=arguments.points,
            images=arguments.images,
            step=step,
        )
        step("page")
        text = html(build_store_page(findings, statement)).encode()
    write_bytes(path, text)
    values = {"page": str(path), "bytes": len(text), **findings.as_json()}
    hint = _signed(arguments.store, path)
    line = f"{path}: {len(text) / 1e6:.1f} MB, opens in a browser without a network{hint}"
    return show(arguments, values, [line])


def _signed(store: Path, path: Path) -> str:
    """Return a hint if a signed file has changed."""
    inside = path.resolve().parent == store.resolve()
    return (
        "; sign the store again (featstore sign)"
        if inside and (store / SIGNATURE_NAME).exists()
        else ""
    )


def _teacher_licences(given: list[str], manifest: Manifest) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, licence = text.partition("=")
        if not equals:
            if len(manifest.teachers) != 1:
                raise ConfigError(
                    f"--teacher-licence {text!r}: the store has {count(len(manifest.teachers), 'teacher')}. Use "
                    f"NAME=LICENCE with NAME one of {', '.join(sorted(manifest.teachers)) or 'none'}."
                )
            name, licence = next(iter(manifest.teachers)), text
        if name not in manifest.teachers:
            raise ConfigError(
                f"--teacher-licence {text!r}: no teacher {name!r}; expected {', '.join(sorted(manifest.teachers))}."
            )
        found[name] = licence.strip()
    return found
