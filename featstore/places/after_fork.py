"""A helper process that makes requests to object stores for a process that was forked.

obstore has threads of its own, and a fork does not copy threads: in the child every request would wait for ever. So a
child whose parent may have used obstore, such as a worker of PyTorch's data loader, starts a fresh process and passes
its requests on. The helper ends with the child, however the child ends. It is a plain subprocess because daemonic
processes, which those workers are, may not start others through ``multiprocessing``.

Requests and answers are lines of JSON; bytes follow their line.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRWPair
from typing import Any

from featstore.errors import ConfigError, RemoteError, RemoteNotFound, StoreError
from featstore.files.locks import close, keep_from_children
from featstore.places.base import AccessRefused, Fault, NotSupported

ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        Fault,
        RemoteNotFound,
        AccessRefused,
        NotSupported,
        RemoteError,
        ConfigError,
        StoreError,
    )
}
"""Errors that a request may end with, the narrowest first."""

Answer = dict[str, Any]


class Helper:
    """A helper process, seen from the process that started it. Safe to use from several threads.

    Args:
        entry: "module:function" that the helper runs; the function calls ``run``.
    """

    def __init__(self, entry: str) -> None:
        ours, theirs = socket.socketpair()
        keep_from_children(ours.fileno())
        self._control = ours
        self._idle: list[BufferedRWPair] = []
        self._lock = threading.Lock()
        module, _, function = entry.partition(":")
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    f"from {module} import {function}; {function}()",
                    str(theirs.fileno()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt from the keyboard is for the child
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                },
            )

    def ask(
        self,
        request: Answer,
        data: bytes = b"",
        hear: Callable[[Answer], object] = lambda answer: None,
    ) -> Any:
        """Pass a request on and wait for its answer.

        Args:
            hear: Called with each part of the answer but the last.

        Raises:
            Fault, StoreError, ConfigError: as the request did; Fault also where the helper has ended.
        """
        end = None
        for answer, _ in self.parts(request, data):
            if "end" in answer:
                end = answer["end"]
            else:
                hear(answer)
        return end

    def parts(self, request: Answer, data: bytes = b"") -> Iterator[tuple[Answer, bytes]]:
        """Pass a request on, and yield the parts of its answer with the bytes that belong to each; as ``ask``."""
        with self._line() as line:
            send(line, request, data)
            answer, piece = receive(line)
            while "end" not in answer and "error" not in answer:
                yield answer, piece
                answer, piece = receive(line)
        if "error" in answer:
            raise ERRORS[answer["error"]](answer["text"])
        yield answer, piece

    @contextmanager
    def _line(self) -> Iterator[BufferedRWPair]:
        """A connection of its own for each request; given back only after a whole answer."""
        with self._lock:
            line = self._idle.pop() if self._idle else None
        try:
            if line is None:
                ours, theirs = socket.socketpair()
                with ours, theirs, self._lock:
                    socket.send_fds(self._control, [b"x"], [theirs.fileno()])
                    line = ours.makefile("rwb")
            yield line
        except (OSError, EOFError, ValueError) as error:
            raise Fault(f"the helper process has ended ({error})") from error
        with self._lock:
            self._idle.append(line)

    def ended(self) -> bool:
        """Whether the helper has ended, which it should not."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End the helper."""
        close(self._control.detach())
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)


def run(serve: Callable[[Answer, bytes, Callable[[Answer, bytes], None]], Any]) -> None:
    """Answer requests until the process that started this one has ended.

    Args:
        serve: Gets a request, its bytes, and a function that sends a part of the answer; returns the last part.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    while True:
        message, handles, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            os._exit(0)
        for handle in handles:
            threading.Thread(target=_answer, args=(handle, serve), daemon=True).start()


def _answer(handle: int, serve: Callable[..., Any]) -> None:
    line = socket.socket(fileno=handle).makefile("rwb")

    def say(answer: Answer, data: bytes = b"") -> None:
        send(line, answer, data)

    with suppress(OSError, EOFError, ValueError):  # the other process has ended
        while True:
            request, data = receive(line)
            try:
                end = serve(request, data, say)
            except tuple(ERRORS.values()) as error:
                name = next(name for name, kind in ERRORS.items() if isinstance(error, kind))
                say({"error": name, "text": str(error.args[0] if error.args else error)})
            else:
                say({"end": end})


def send(line: BufferedRWPair, message: Answer, data: bytes) -> None:
    """Write one message."""
    line.write(json.dumps({**message, "bytes": len(data)}).encode() + b"\n" + data)
    line.flush()


def receive(line: BufferedRWPair) -> tuple[Answer, bytes]:
    """Read one message.

    Raises:
        EOFError: the other process has ended.
    """
    text = line.readline()
    if not text.endswith(b"\n"):
        raise EOFError("no answer")
    message: Answer = json.loads(text)
    data = line.read(message.pop("bytes"))
    return message, data
