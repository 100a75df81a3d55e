"""Start a server program, wait until it listens, and see to it that it ends."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HOST = "127.0.0.1"

START_S = 60  # longest wait for a server, seconds: machines of continuous integration are slow


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def program(command: Callable[[int], Sequence[str]], log: Path) -> Iterator[int]:
    """Run a server on a free port; yields the port when it listens.

    Args:
        command: makes the command line from the port.
        log: gets what the server prints.
    """
    for _ in range(3):  # somebody else may take the port before the server does
        port = free_port()
        with log.open("wb") as out:
            # The kernel ends the server when our process dies, however it dies.
            line = ["setpriv", "--pdeathsig", "TERM", *command(port)]
            server = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            if _listens(server, port):
                yield port
                return
        finally:
            _stop(server)
    raise RuntimeError(f"{' '.join(line)} does not start: {log.read_text(errors='replace')}")


def _listens(server: "subprocess.Popen[bytes]", port: int) -> bool:
    """Wait until a server accepts connections; False where it has ended."""
    end = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            # Another program may have been quicker to take the port.
            time.sleep(0.02)
            return server.poll() is None
        time.sleep(0.02)
    return False


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(timeout=5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
