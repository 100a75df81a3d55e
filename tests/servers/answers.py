"""An HTTP server on loopback whose answers a test writes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.servers.programs import HOST

Answer = Callable[[BaseHTTPRequestHandler], Any]
"""Returns (status, headers, body) for a request, or yields (status, headers) and then pieces of the body."""


class Answers:
    """A running server.

    Attributes:
        url: "http://HOST:PORT".
        requests: "METHOD PATH" of each request so far.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[str] = []


@contextmanager
def serve_answers(answer: Answer) -> Iterator[Answers]:
    """Run a server in threads of this process."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            running.requests.append(f"{self.command} {self.path}")
            self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
            found = answer(self)
            if isinstance(found, tuple):
                status, headers, body = found
                parts: Any = iter([(status, {"content-length": len(body), **headers}), body])
            else:
                parts = found
            with suppress(OSError):  # the client has gone
                status, headers = next(parts)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, str(value))
                self.end_headers()
                for piece in parts if self.command != "HEAD" else ():
                    self.wfile.write(piece)
                    self.wfile.flush()

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = reply

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None:
            pass

    with Server((HOST, 0), Handler) as server:
        running = Answers(f"http://{HOST}:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            server.shutdown()
            thread.join()
