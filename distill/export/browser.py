"""A page that runs the model in a browser: browser/index.html, one file that needs neither server nor network.

It contains, compressed: the models, onnxruntime-web, the preprocessing, and a reference image with its logits. A
separate WebAssembly file would need a server. Templates and scripts are in ``web/``.
"""

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from distill.export import onnx_model
from distill.export.preprocessing import NAME as PREPROCESSING
from distill.export.preprocessing import PICTURE
from featstore.display.text import count
from featstore.errors import ConfigError
from featstore.files import cache_folder as cache
from featstore.files.atomic import write_bytes

NAME = "browser/index.html"
WEB = Path(__file__).parent / "web"

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""SHA-512 of the tarball (``dist.integrity`` of the npm registry)."""
CODE, WASM = "dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"
"""The smallest build: WebAssembly without WebGL and WebGPU."""

LABELS = {"onnx": "float32", "int8": "int8"}
FILES = {"onnx": onnx_model.NAME, "int8": onnx_model.INT8}


@dataclass(frozen=True)
class WebRuntime:
    """The files of onnxruntime-web in the page."""

    version: str  # of the package
    code: bytes  # ES module
    wasm: bytes  # WebAssembly module


def web_runtime(given: str = "") -> WebRuntime:
    """Read the runtime.

    Args:
        given: npm's tarball, or its unpacked folder; "" for the pinned version in the cache folder, which npm downloads
            the first time.
    """
    path = Path(given) if given else fetched()
    if path.is_dir():
        return _runtime(
            {name: path / name for name in ("package.json", CODE, WASM)}, path, Path.read_bytes
        )
    try:
        with tarfile.open(path) as archive:
            members = {
                name: archive.extractfile(f"package/{name}")
                for name in ("package.json", CODE, WASM)
            }
            return _runtime(members, path, lambda member: member.read())
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(
            f"--browser_runtime {path}: cannot be read ({error}). {_EXPECTED}"
        ) from error
    except KeyError as error:
        raise ConfigError(f"--browser_runtime {path}: {error.args[0]}. {_EXPECTED}") from error


_EXPECTED = (
    f"Expected the tarball that `npm pack {PACKAGE}@{VERSION}` makes, or its unpacked folder."
)


def _runtime(members: Mapping[str, Any], path: Path, read: Any) -> WebRuntime:
    try:
        found = {name: read(member) for name, member in members.items()}
        package = json.loads(found["package.json"])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--browser_runtime {path}: cannot be read ({error}). {_EXPECTED}"
        ) from error
    if package.get("name") != PACKAGE:
        raise ConfigError(
            f"--browser_runtime {path}: is the package {package.get('name')!r}. {_EXPECTED}"
        )
    return WebRuntime(str(package["version"]), found[CODE], found[WASM])


def runtime_folder() -> Path:
    """Folder of downloaded runtimes, below FEATSTORE_CACHE or ~/.cache/featstore."""
    return cache.cache_folder() / "web"


def fetched() -> Path:
    """The pinned tarball, downloaded once by npm from its configured registry."""
    path = runtime_folder() / f"{PACKAGE}-{VERSION}.tgz"
    if not path.is_file():
        npm = shutil.which("npm")
        if npm is None:
            raise ConfigError(
                f"--browser true: {PACKAGE} {VERSION} is not in {path.parent} and npm is not installed. Install npm, "
                f"or give the package's tarball or folder with --browser_runtime (npmjs.com/package/{PACKAGE})."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
            command = [
                npm,
                "pack",
                f"{PACKAGE}@{VERSION}",
                "--pack-destination",
                folder,
                "--silent",
            ]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise ConfigError(
                    f"--browser true: npm cannot fetch {PACKAGE}: {error}."
                ) from error
            packed = Path(folder) / path.name
            if done.returncode or not packed.is_file():
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise ConfigError(
                    f"--browser true: npm cannot fetch {PACKAGE} {VERSION}: {last}. Without a network give its "
                    "tarball with --browser_runtime."
                )
            _check(packed)
            packed.replace(path)
    _check(path)
    return path


def _check(path: Path) -> None:
    """Compare the checksum of a tarball."""
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != SHA512:
        raise ConfigError(
            f"{path}: its SHA-512 is {found[:16]}.., expected {SHA512[:16]}.. of {PACKAGE} {VERSION}. Delete it "
            "and retry; if the error persists, the registry serves another file."
        )


def write_browser_page(
    folder: Path, *, title: str, names: Sequence[str], runtime: WebRuntime
) -> Path:
    """Write the page of an export. Returns its path.

    Args:
        folder: of the export, with its ONNX files and preprocessing.json.
        names: models to choose from, "onnx" and "int8"; the first is preselected.
        runtime: of ``web_runtime``.
    """
    present = {name: folder / FILES[name] for name in names}
    rule = json.loads((folder / PREPROCESSING).read_bytes())
    models = [
        {"name": name, "label": LABELS[name], "size": f"{path.stat().st_size / 1e6:.1f} MB"}
        for name, path in present.items()
    ]  # fmt: skip
    packed = {
        "runtime-code": _pack(_without_map(runtime.code)),
        "runtime-wasm": _pack(runtime.wasm),
        "reference-picture": base64.b64encode((folder / PICTURE).read_bytes()).decode(),
        **{f"model-{name}": _pack(path.read_bytes()) for name, path in present.items()},
    }
    scripts = [(WEB / name).read_text() for name in ("preprocess.js", "page.js")]
    height, width = rule["input"]["shape"][2:]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(WEB), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html").render(
        title=title,
        subtitle=f"{count(len(rule['output']['label_names']), 'class')}, input of {width} x {height} pixels. Choose "
        "an image to classify.",
        models=models,
        width=width,
        height=height,
        runtime=f"{PACKAGE} {runtime.version} (MIT licence, Microsoft)",
        told=_as_script({"preprocessing": rule, "models": models}),
        packed=packed,
        scripts=scripts,
        script_hashes=[_hash(script) for script in scripts],
        style=(WEB / "page.css").read_text(),
    )
    write_bytes(folder / NAME, page.encode())
    return folder / NAME


def _pack(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()


def _without_map(code: bytes) -> bytes:
    """The code without the line that makes developer tools request a missing source map."""
    lines = code.splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(b"//# sourceMappingURL"))


def _as_script(values: dict[str, Any]) -> str:
    """JSON that cannot end its script element."""
    return json.dumps(values, allow_nan=False).replace("<", "\\u003c")


def _hash(code: str) -> str:
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return f"'sha256-{digest}'"
