"""Test once whether the Hugging Face hub answers: its client would wait for 50 s of retries without a network."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

TIMEOUT_S = 3.0


@contextmanager
def setting_restored() -> Iterator[None]:
    """Leave the hub's client as it was: the process may be a user's own, and its network may come back."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def go_offline_if_unreachable() -> None:
    """Use the local cache alone where the hub's host cannot be reached; call it inside ``setting_restored``.

    Behind a proxy nothing is changed: whether the hub answers is then not known without asking it.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or any(
        name in os.environ for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    ):
        return
    answered = threading.Event()
    # In a thread, because resolving a name has no timeout of its own.
    threading.Thread(target=_connect, args=(constants.ENDPOINT, answered), daemon=True).start()
    if not answered.wait(TIMEOUT_S):
        constants.HF_HUB_OFFLINE = True


def _connect(endpoint: str, answered: threading.Event) -> None:
    place = urlsplit(endpoint)
    port = place.port or (443 if place.scheme == "https" else 80)
    with suppress(OSError):
        socket.create_connection((place.hostname or "", port), timeout=TIMEOUT_S).close()
        answered.set()
