"""nginx on loopback: files by plain http, with range requests."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.programs import HOST, program

INSTALL = "apt-get install -y nginx-light"

CONFIG = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {host}:{port};
        root {folder}/root;
    }}
}}
"""


def nginx() -> str | None:
    """Path of the program; None where there is none. Debian keeps it off the search path of plain users."""
    return shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


class Web:
    """A running server.

    Attributes:
        endpoint: "http://HOST:PORT".
        root: the folder that it serves.
    """

    def __init__(self, endpoint: str, root: Path) -> None:
        self.endpoint = endpoint
        self.root = root

    def share(self, folder: Path, name: str = "") -> str:
        """Serve a folder as it is and as it will be; returns the URL of it.

        Args:
            folder: of this machine.
            name: the path of the URL; made from the folder's if not given.
        """
        name = name or f"{len(list(self.root.iterdir()))}-{folder.name}"
        (self.root / name).symlink_to(folder.absolute(), target_is_directory=True)
        return f"{self.endpoint}/{name}"


@contextmanager
def serve_folder(folder: Path) -> Iterator[Web]:
    """Run a server.

    Args:
        folder: an empty one, for its configuration and for what it serves.
    """
    found = nginx()
    assert found is not None, INSTALL
    root = folder / "root"
    root.mkdir()
    config = folder / "nginx.conf"

    def command(port: int) -> list[str]:
        config.write_text(CONFIG.format(folder=folder, host=HOST, port=port))
        return [found, "-p", str(folder), "-e", "stderr", "-c", str(config)]

    with program(command, folder / "nginx.log") as port:
        yield Web(f"http://{HOST}:{port}", root)
