"""A page that runs the model: browser/index.html, one file that opens from disk, without a server or a network.

Everything lies in it, compressed: the models, onnxruntime-web, the rule of the preprocessing and a picture whose
answers are known. WebAssembly in a file of its own would need a server; 5 MB of it in the page need none. The parts
of the page are in ``web/``.
"""

import base64
import gzip
import hashlib
import json
import os
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
from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes

NAME = "browser/index.html"
WEB = Path(__file__).parent / "web"

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the tarball, as npm's registry states it (``dist.integrity``)."""
CODE, WASM = "dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"
"""The smallest build: WebAssembly on the CPU, without WebGL and WebGPU."""

LABELS = {"onnx": "float32", "int8": "int8"}
FILES = {"onnx": onnx_model.NAME, "int8": onnx_model.INT8}


@dataclass(frozen=True)
class WebRuntime:
    """onnxruntime-web, as far as the page needs it.

    Attributes:
        version: of the package.
        code: an ES module.
        wasm: that it loads.
    """

    version: str
    code: bytes
    wasm: bytes


def web_runtime(given: str = "") -> WebRuntime:
    """Get the runtime.

    Args:
        given: npm's tarball of it, or an unpacked folder; "" takes the pinned version from the cache folder, and
            fetches it by npm the first time.

    Raises:
        ConfigError: it is not there, is not what it should be, or cannot be fetched.
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


def cache_folder() -> Path:
    """Where fetched runtimes stay: FEATSTORE_CACHE, or ~/.cache/featstore."""
    given = os.environ.get("FEATSTORE_CACHE")
    return (Path(given).expanduser() if given else Path.home() / ".cache" / "featstore") / "web"


def fetched() -> Path:
    """The pinned tarball; npm fetches it once from the registry that it is configured for.

    Raises:
        ConfigError: npm is not there or fails, or the file is another one than expected.
    """
    path = cache_folder() / f"{PACKAGE}-{VERSION}.tgz"
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
    """Refuse a tarball that is not the pinned one."""
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != SHA512:
        raise ConfigError(
            f"{path}: its SHA-512 is {found[:16]}.., expected {SHA512[:16]}.. of {PACKAGE} {VERSION}. Delete it and "
            "start again; if it comes back, ask who runs the registry."
        )


def write(folder: Path, *, title: str, names: Sequence[str], runtime: WebRuntime) -> Path:
    """Write the page of an export.

    Args:
        folder: of the export, with its ONNX files and preprocessing.json.
        title: of the page.
        names: of the models that can be chosen there, "onnx" and "int8"; the first is chosen at first.
        runtime: see ``web_runtime``.

    Returns:
        The page.
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
        subtitle=f"{len(rule['output']['label_names'])} classes, pictures of {width} x {height} pixels. Choose a "
        "picture and see what the model takes it for.",
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
    """Without the line that makes developers' tools ask for a file that is not there."""
    lines = code.splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(b"//# sourceMappingURL"))


def _as_script(values: dict[str, Any]) -> str:
    """JSON that cannot leave its script element, whatever the classes are called."""
    return json.dumps(values, allow_nan=False).replace("<", "\\u003c")


def _hash(code: str) -> str:
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return f"'sha256-{digest}'"
