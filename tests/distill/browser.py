"""A headless Chromium, driven through chromedriver's plain HTTP interface (W3C WebDriver)."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INSTALL = "apt-get install -y chromium chromium-driver"

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


def missing() -> bool:
    """Whether there is no browser or no driver on this machine."""
    return shutil.which("chromium") is None or shutil.which("chromedriver") is None


class Browser:
    """One window."""

    def __init__(self, address: str) -> None:
        self._address = address

    def call(self, path: str, body: dict[str, Any] | None = None, method: str = "") -> Any:
        """One command; POST with a body, else GET, or as ``method`` says."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._address}{path}", data)
        request.method = method or ("GET" if body is None else "POST")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def open(self, page: Path) -> None:
        """Open a file and wait until its plots are drawn; what was logged before is forgotten."""
        self.console()
        self.requests()
        self.call("/url", {"url": page.absolute().as_uri()})
        for _ in range(600):
            if self.run("return document.documentElement.dataset.drawn !== undefined"):
                return
            time.sleep(0.1)
        raise TimeoutError(f"{page}: not drawn after a minute; console: {self.console()}")

    def run(self, script: str) -> Any:
        """What a script returns."""
        return self.call("/execute/sync", {"script": script, "args": []})

    def console(self) -> list[str]:
        """What was written to the console since the last call, warnings and errors."""
        return [entry["message"] for entry in self.call("/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call."""
        events = [
            json.loads(entry["message"])["message"]
            for entry in self.call("/se/log", {"type": "performance"})
        ]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def devtools(self, command: str, **parameters: Any) -> Any:
        """One command of the DevTools protocol."""
        return self.call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width: int, height: int = 900) -> None:
        """Give the page a viewport of so many pixels, that of a phone if it is narrow."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)

    def colour_scheme(self, scheme: str) -> None:
        """Tell the page that the user prefers "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.devtools("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        found = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A fresh browser; ``profile`` is an empty folder for its own files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    entry = Browser(f"http://127.0.0.1:{port}")
    wanted = {
        "goog:chromeOptions": {"args": [*FLAGS, f"--user-data-dir={profile}"]},
        "goog:loggingPrefs": {"browser": "WARNING", "performance": "ALL"},
    }
    try:
        for _ in range(100):
            try:
                if entry.call("/status")["ready"]:
                    break
            except OSError:
                time.sleep(0.1)
        session = entry.call("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        window = Browser(f"http://127.0.0.1:{port}/session/{session}")
        try:
            yield window
        finally:
            window.call("", method="DELETE")  # else the browser outlives its driver
    finally:
        driver.terminate()
        driver.wait(timeout=30)
