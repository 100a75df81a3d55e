"""Stores that travel through ``tests.servers.proxy``: patience for it, and what must hold on arrival."""

from pathlib import Path

from featstore.maintenance.verify import verify
from featstore.places.base import Retry
from featstore.sharing.progress import TransferReport
from tests.featstore.stores import snapshot
from tests.servers import faults
from tests.servers.faults import Fault

QUICK = Retry(attempts=8, first_s=0.002, most_s=0.02, timeout_s=1.0)
"""More attempts than a plan has faults for one object, and hardly a pause."""

KINDS = [kind for kind in faults.KINDS if not kind.startswith("stall")] * 2 + [
    "stall",
    "stall body",
]
"""All, but fewer of those that each cost the time-out."""


def check_same(copy: Path, store: Path) -> None:
    """A copy has every byte, and passes the check of another team's store."""
    assert snapshot(copy) == snapshot(store)
    result = verify(copy)
    assert result.sound, result.damages
    assert result.complete


def check_named(injected: list[Fault], report: TransferReport) -> int:
    """Each object of a shard that arrived damaged is in the report; returns how many there were."""
    text = "\n".join(report.damaged)
    changed = {
        fault.name.rpartition("/store/")[2]: fault
        for fault in injected
        if fault.kind in faults.CHANGES and any(part in fault.name for part in ("/c/", "/shards/"))
    }
    silent = [fault for name, fault in changed.items() if name not in text]
    assert not silent, (silent, report.damaged)
    return len(changed)


def files_of(folder: Path) -> dict[str, bytes]:
    """What travels of a store; what a broken connection left half-written is not counted."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
