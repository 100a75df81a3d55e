"""moto's S3 server, one change at a time: moto checks the condition of a request, and writes, in two steps.

python -m tests.servers.s3_server HOST PORT
"""

import io
import sys
import threading
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

READING = ("GET", "HEAD")


class OneChange:
    """Passes requests on, those that change something one after another."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        """Answer one request; its body is read before it waits for its turn."""
        if environ["REQUEST_METHOD"] in READING:
            return self._application(environ, start)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        with self._lock:
            return self._application(environ, start)


if __name__ == "__main__":
    moto = DomainDispatcherApplication(create_backend_app)
    run_simple(sys.argv[1], int(sys.argv[2]), OneChange(moto), threaded=True)
