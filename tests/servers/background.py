"""An event loop in a thread, for servers that live beside a test."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

from tests.servers.programs import HOST

T = TypeVar("T")

Run = Callable[[Coroutine[Any, Any, T]], T]


@contextmanager
def background_loop(name: str) -> Iterator[Run[Any]]:
    """Yields a function that runs a coroutine in the thread and waits for what it returns."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=name, daemon=True)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Listener:
    """A server of TCP connections on a free port, whose connections end with it.

    Attributes:
        port: where it listens.
    """

    def __init__(self) -> None:
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: WeakSet[asyncio.StreamWriter] = WeakSet()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The work for one connection; it may break off."""
        raise NotImplementedError

    async def listen(self) -> None:
        """Begin."""
        self._server = await asyncio.start_server(self._one, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def end(self) -> None:
        """Stop listening, and break off what is going on."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # A closed connection with bytes still to send stays open, and would outlive the loop.
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def connect(
        self, host: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection that ends with the server."""
        reader, writer = await asyncio.open_connection(host, port)
        self._writers.add(writer)
        return reader, writer

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self.serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one of the two sides went away, or the server ends
        finally:
            self._tasks.discard(task)
            writer.close()


L = TypeVar("L", bound=Listener)


@contextmanager
def listening(listener: L, name: str) -> Iterator[L]:
    """Run a listener in a thread of this process."""
    with background_loop(name) as run:
        run(listener.listen())
        try:
            yield listener
        finally:
            run(listener.end())
