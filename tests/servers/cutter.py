"""A proxy for any protocol over TCP that cuts connections after some bytes."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from tests.servers.background import Listener, listening
from tests.servers.programs import HOST
from tests.servers.proxy import linger


class Cutter(Listener):
    """A running proxy.

    Attributes:
        port: where it listens.
        cuts: connections that it has cut.
    """

    def __init__(self, upstream_port: int, *, seed: int, most: int, after: tuple[int, int]) -> None:
        super().__init__()
        self.cuts = 0
        self._upstream_port = upstream_port
        self._chance = Random(seed)
        self._most = most
        self._after = after

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """See ``Listener``."""
        inner_reader, inner_writer = await self.connect(HOST, self._upstream_port)
        left = [self._chance.randint(*self._after)]
        both = [
            asyncio.create_task(self._pass(reader, inner_writer, left)),
            asyncio.create_task(self._pass(inner_reader, writer, left)),
        ]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if any(task.exception() is None and task.result() for task in done):
                linger(writer)
        finally:
            for task in both:
                task.cancel()
            inner_writer.close()  # before the wait, which is broken off where the server ends
            await asyncio.gather(*both, return_exceptions=True)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int]
    ) -> bool:
        """Pass one direction on; returns whether the connection is to be cut rather than ended."""
        while data := await reader.read(4096):
            left[0] -= len(data)
            if left[0] < 0 and self.cuts < self._most:
                self.cuts += 1
                return True
            writer.write(data)
            await writer.drain()
        return False


@contextmanager
def serve_cutter(port: int, *, seed: int, most: int, after: tuple[int, int]) -> Iterator[Cutter]:
    """Run a proxy in a thread of this process.

    Args:
        port: of the server on loopback.
        seed: of the moments.
        most: how many connections are cut; later ones pass.
        after: fewest and most bytes, both ways together, that a connection lives.
    """
    with listening(Cutter(port, seed=seed, most=most, after=after), "cutter") as cutter:
        yield cutter
