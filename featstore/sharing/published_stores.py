"""List, delete and retract stores at a URL."""

import datetime
from collections.abc import Iterator
from typing import Any

from featstore.errors import RemoteError, StoreError, shorten
from featstore.format.file_names import CARD_NAME
from featstore.format.ledger import LEDGER_FOLDER
from featstore.format.manifest import MANIFEST_NAME
from featstore.maintenance.list_and_delete import StoreSummary, describe_store
from featstore.places.open_place import open_place
from featstore.reading.cached.published_store import MARK_NAME, UNFINISHED_NAME, remote_contents
from featstore.sharing.progress import explain_system_errors
from featstore.sharing.sender import foreign_files


def find_published(url: str, **client: Any) -> Iterator[StoreSummary]:
    """Find every store at or below a URL, in the order of their URLs; unfinished ones have a problem.

    ``client`` are the further arguments of ``open_place``, here and below."""
    with explain_system_errors("list"):
        place = open_place(url, **client)
        if not place.lists:  # a web server
            yield summarise_published(url, **client)
            return
        names = place.sizes()
        folders = {
            name.rpartition("/")[0]
            for name in names
            if name.rpartition("/")[2] in (MANIFEST_NAME, UNFINISHED_NAME)
        }
        ledgers = {name.split(f"{LEDGER_FOLDER}/")[0].rstrip("/") for name in names}
        found = ""
        for folder in sorted(folders & ledgers):
            if not found or not f"{folder}/".startswith(f"{found}/"):
                found = folder
                address = f"{url.rstrip('/')}/{folder}".rstrip("/")
                yield summarise_published(address, **client)


def summarise_published(url: str, **client: Any) -> StoreSummary:
    """Describe the store at a URL; one that cannot be read is a summary with a problem."""
    place = open_place(url, **client)
    try:
        contents = remote_contents(place)
    except StoreError as error:
        return StoreSummary(path=place.url, problem=str(error).removeprefix(f"{place.url}: "))
    manifest = contents.manifest
    return describe_store(place.url, manifest, manifest.num_shards, contents.mark.bytes)


def delete_published(url: str, *, force: bool = False, reason: str = "", **client: Any) -> None:
    """Delete the store at a URL: its manifest first, so that no reader finds half a store.

    Args:
        force: Delete all files there, also where the manifest cannot be read, or other files are there.
        reason: Retract the store: leave a README.md that names its fingerprint, the date and this reason.

    Raises:
        StoreError: other files are there.
    """
    with explain_system_errors("delete"):
        place = open_place(url, **client)
        if not place.writes:
            raise RemoteError(f"{place.url}: can be read only; nothing was deleted.")
        names, fingerprint = place.sizes(), "unknown"
        try:
            contents = remote_contents(place)
            fingerprint = contents.manifest.fingerprint
            foreign = foreign_files(contents, names)
        except StoreError:
            if not force or not names:
                raise
            foreign = []
        if foreign and not force:
            raise StoreError(
                f"{place.url}: holds files that are not of the store: {shorten(foreign)}. Move them away, or delete "
                "them with it: --force."
            )
        place.remove([MANIFEST_NAME, MARK_NAME, UNFINISHED_NAME])
        if reason:
            today = datetime.datetime.now(datetime.UTC).date()
            text = f"# Retracted\n\nThe feature store {fingerprint} was retracted on {today}.\n\n{reason}\n"
            place.write(CARD_NAME, text.encode())
        place.remove(sorted(names.keys() - ({CARD_NAME} if reason else set())))
        place.finish()
