"""An SFTP server in a thread: asyncssh's, with a key for the user, one folder, and no shell."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.background import background_loop
from tests.servers.programs import HOST

USER = "tester"


@dataclass(frozen=True)
class Sftp:
    """A running server."""

    url: str  # "sftp://USER@HOST:PORT", the folder that it serves
    folder: Path  # the same here
    port: int  # where it listens
    home: Path  # the home folder of the user

    def through(self, port: int) -> str:
        """URL of the same behind a proxy on another port, which is made known for the same server."""
        known = (self.home / ".ssh/known_hosts").read_text()
        self.know(port, known.splitlines()[0].split(" ", 1)[1])
        return f"sftp://{USER}@{HOST}:{port}"

    def know(self, port: int, key: str) -> None:
        """Note the key that the user expects at a port."""
        with (self.home / ".ssh/known_hosts").open("a") as file:
            file.write(f"[{HOST}]:{port} {key.strip()}\n")


@contextmanager
def serve_sftp(folder: Path, home: Path) -> Iterator[Sftp]:
    """Run a server in a thread of this process.

    Args:
        folder: what it serves.
        home: gets .ssh with the user's key and the key of the server, as ssh keeps them.
    """
    import asyncssh

    host_key, user_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    keys = home / ".ssh"
    keys.mkdir(mode=0o700)
    user_key.write_private_key(str(keys / "id_ed25519"))
    (keys / "id_ed25519").chmod(0o600)
    (keys / "authorized_keys").write_bytes(user_key.export_public_key())

    class Files(asyncssh.SFTPServer):
        """Nothing outside of the folder."""

        def __init__(self, channel: asyncssh.SSHServerChannel) -> None:
            super().__init__(channel, chroot=str(folder).encode())

    connections: list[asyncssh.SSHServerConnection] = []

    class Door(asyncssh.SSHServer):
        """Keeps account of who is there."""

        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            connections.append(conn)

    async def start() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            HOST,
            0,
            server_factory=Door,
            server_host_keys=[host_key],
            authorized_client_keys=str(keys / "authorized_keys"),
            sftp_factory=Files,
        )

    async def stop() -> None:
        server.close()
        for (
            connection
        ) in connections:  # Python 3.12 waits for open ones before a server counts as closed
            connection.abort()
            await connection.wait_closed()
        await server.wait_closed()

    with background_loop("sftp server") as run:
        server = run(start())
        try:
            port = server.get_port()
            sftp = Sftp(f"sftp://{USER}@{HOST}:{port}", folder, port, home)
            sftp.know(port, host_key.export_public_key().decode())
            yield sftp
        finally:
            run(stop())
