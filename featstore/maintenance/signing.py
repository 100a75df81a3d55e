"""Sign a store and check its signature, over all of its files, with key files, by the OpenSSF's model-signing.

No network is needed. What is signed is what a receiver reads: manifest, ledger, objects, artefacts and the card. Not
signed is what follows from the signed manifest and is compared with it by ``verify`` (the container's metadata, which
another version of its library may spell in another way), and what coordinates runs on one machine (locks, leases). The
signature is the field's own: ``model_signing verify key`` accepts it without this package.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import shlex
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featstore.containers.metadata import metadata_files
from featstore.errors import ConfigError, StoreError, StoreIncomplete, command, shorten
from featstore.files.atomic import write_bytes
from featstore.files.locks import LOCK_NAME, PUBLISH_NAME, exclusive
from featstore.files.untrusted import read_plain
from featstore.format.file_names import CARD_NAME, CARD_PAGE_NAME, SIGNATURE_NAME
from featstore.format.ledger import COMPLETE_NAME, LEDGER_FOLDER
from featstore.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from featstore.maintenance.verify import verify
from featstore.writing.commit import remove_leftovers
from featstore.writing.leases import LEASE_FOLDER

GIT_NAMES = (".git", ".gitattributes", ".github", ".gitignore")
LOCAL_NAMES = (SIGNATURE_NAME, LOCK_NAME, PUBLISH_NAME, LEASE_FOLDER, ".cache")
"""Not signed, and not missing if absent: files of one machine, or of a client such as huggingface_hub."""

MAKE_KEYS = (
    "openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem && "
    "openssl ec -in KEY.pem -pubout -out KEY.pub"
)


@dataclass
class Signed:
    """Result of a signature check."""

    key: str  # SHA-256 of the public key as PEM (``openssl pkey -pubin -in KEY.pub | sha256sum``)
    name: str = ""
    digest: str = ""  # SHA-256 over the hashes of all files in the order of their names
    files: int = 0
    problem: str = ""  # why the signature itself is worth nothing; "" if it is that of the key
    changed: list[str] = field(default_factory=list)  # files with another content than was signed
    missing: list[str] = field(default_factory=list)  # files that were signed and are not there
    unsigned: list[str] = field(default_factory=list)  # files that are there and were not signed

    @property
    def sound(self) -> bool:
        """Whether the key has signed exactly these files."""
        return not (self.problem or self.changed or self.missing or self.unsigned)


def sign(store: str | Path, private_key: str | Path, *, passphrase: bytes | None = None) -> Signed:
    """Verify every byte of a store and sign it. The signature is written into the store, as ``model.sig``.

    Args:
        private_key: PEM file of an elliptic curve key (P-256, P-384 or P-521).
        passphrase: of the key, if it is encrypted.

    Raises:
        ConfigError: the key cannot be used, or model-signing is not installed.
        StoreError: the store is damaged, or holds files that are not its own: those are not signed.
    """
    store, private_key = Path(store), Path(private_key)
    library = _library()
    try:
        config = library.signing.Config().use_elliptic_key_signer(
            private_key=private_key, password=passphrase
        )
    except Exception as error:  # cryptography has a kind of its own for each way a key can be wrong
        raise ConfigError(_bad_key(private_key, "private", error)) from None
    manifest = read_manifest(store)
    with exclusive(store):
        remove_leftovers(store)
        _check_worth(store)
        ignored = _ignored(manifest)
        hashing = library.hashing.Config().set_ignored_paths(paths=sorted(ignored))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, SIGNATURE_NAME)
            try:
                config.set_hashing_config(hashing).sign(store.resolve(), path)
            except (OSError, ValueError) as error:
                raise StoreError(f"{store}: cannot be signed ({error}).") from None
            data = path.read_bytes()
        write_bytes(store / SIGNATURE_NAME, data)
    bundle, statement = _parse(data)
    return _said(bundle["verificationMaterial"]["publicKey"]["hint"], statement)


def check_signature(store: str | Path, public_key: str | Path) -> Signed:
    """Compare a store with its signature; every file is hashed.

    Args:
        public_key: PEM file that its owner gave you, by another way than the store.
    """
    store, public_key = Path(store), Path(public_key)
    library = _library()
    try:
        key = hashlib.sha256(_normal_pem(public_key)).hexdigest()
        config = library.verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:  # as above
        raise ConfigError(_bad_key(public_key, "public", error)) from None
    ignored = _ignored(read_manifest(store))
    present = sorted(_files(store, ignored))
    try:
        # A file takes some 200 bytes of a signature.
        data = read_plain(store, SIGNATURE_NAME, most_bytes=2**22 + 2**10 * len(present))
        _, statement = _parse(data)
    except FileNotFoundError:
        return Signed(key, problem=f"no {SIGNATURE_NAME} in it: it was never signed")
    except OSError as error:
        return Signed(key, problem=f"{SIGNATURE_NAME}: {error.strerror}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Signed(key, problem=f"{SIGNATURE_NAME} is no signature of a model ({error!r})")
    hashing, problem = _verify(library, config, store, data, ignored)
    if not hashing.signature_holds:
        return Signed(key, problem=f"not a signature by this key ({problem[:500]})")
    said = _said(key, statement)
    signed = {item["name"]: item["digest"] for item in statement["predicate"]["resources"]}
    # From our own list and not the library's: a signature may also say which files it passes over.
    said.missing = sorted(signed.keys() - set(present))
    said.unsigned = sorted(set(present) - signed.keys())
    if hashing.found is None:
        said.problem = f"the files cannot be hashed ({problem[:500]})"
    else:
        found = hashing.found
        said.changed = sorted(
            name for name in signed if found.get(name, signed[name]) != signed[name]
        )
    if problem and said.sound:
        said.problem = problem[:500]
    return said


def _verify(
    library: Any, config: Any, store: Path, data: bytes, ignored: Collection[str]
) -> tuple[Any, str]:
    """Let the library verify a signature. Returns whether it holds and the hashes of the files, and the problem."""

    class Hashing(library.hashing.Config):  # type: ignore[misc]
        """Hashes the files; the library asks for it once it has found the signature to be that of the key."""

        signature_holds = False
        found: dict[str, str] | None = None

        def hash(self, model_path: Any, **options: Any) -> Any:
            self.signature_holds = True
            manifest = super().hash(model_path, **options)
            self.found = {
                item.identifier: item.digest.digest_hex for item in manifest.resource_descriptors()
            }
            return manifest

    hashing = Hashing().set_ignored_paths(paths=sorted(ignored))
    problem = ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, SIGNATURE_NAME)  # the very bytes that were parsed
        path.write_bytes(data)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it may print a warning
                config.set_hashing_config(hashing).verify(store.resolve(), path)
        except Exception as error:  # of the library, of cryptography and of the parts of a bundle
            problem = " ".join(str(error).split()) or type(error).__name__
    return hashing, problem


def changed_since_signed(store: Path) -> list[str]:
    """List the manifest, mark and cards of a store that are not those of its signature; no other file is read.

    Returns:
        Names; [] also where there is no signature, or none that can be read.
    """
    try:
        _, statement = _parse(read_plain(store, SIGNATURE_NAME, most_bytes=2**30))
        resources = statement["predicate"]["resources"]
        signed = {item["name"]: item["digest"] for item in resources}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    names = (MANIFEST_NAME, f"{LEDGER_FOLDER}/{COMPLETE_NAME}", CARD_NAME, CARD_PAGE_NAME)
    found: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(OSError):
            found[name] = hashlib.sha256(read_plain(store, name, most_bytes=2**30)).hexdigest()
    return [name for name in names if found.get(name) != signed.get(name)]


def _library() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise ConfigError(
            f"signatures need the package model-signing ({error}): pip install 'featstore-distill[sign]'"
        ) from None
    return model_signing


def _check_worth(store: Path) -> None:
    """Refuse to sign a store that is incomplete, damaged, or holds other files."""
    report = verify(store, workers=2)
    if report.missing:
        raise StoreIncomplete(
            f"{store}: {len(report.missing):,} shards are missing. Run {command('extract')} with the same "
            "settings, then sign."
        )
    if report.damages:
        raise StoreError(
            f"{store}: damaged, so it is not signed: {shorten(report.damages, 3)}. See featstore "
            f"verify {shlex.quote(str(store))}."
        )
    if report.foreign:
        raise StoreError(
            f"{store}: holds files that are not of the store: {shorten(report.foreign)}. They are not pushed with it, "
            "and a signature over them would not hold elsewhere. Move them away, then sign."
        )


def _ignored(manifest: Manifest) -> set[str]:
    return {*LOCAL_NAMES, *GIT_NAMES, *metadata_files(manifest)}


def _files(store: Path, ignored: set[str]) -> Iterator[str]:
    """Yield the names of files and links below a store, without those that are not signed."""
    root = str(store)
    for folder, folders, files in os.walk(root):
        base = folder[len(root) :].lstrip("/")
        links = [name for name in folders if os.path.islink(f"{folder}/{name}")]  # noqa: PTH114
        folders[:] = [name for name in folders if _join(base, name) not in ignored]
        for name in [*files, *links]:
            if _join(base, name) not in ignored:
                yield _join(base, name)


def _join(base: str, name: str) -> str:
    return f"{base}/{name}" if base else name


def _parse(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse a bundle, and the statement in it; the signature is not checked."""
    bundle = json.loads(data)
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    method = statement["predicate"]["serialization"]["method"]
    algorithm = statement["predicate"]["serialization"]["hash_type"]
    if (method, algorithm) != ("files", "sha256"):
        raise ValueError(f"by {algorithm} over {method}; expected sha256 over files")
    for item in [*statement["subject"], *statement["predicate"]["resources"]]:
        if not isinstance(item["name"], str):
            raise TypeError("a name that is no text")
    return bundle, statement


def _said(key: str, statement: dict[str, Any]) -> Signed:
    subject = statement["subject"][0]
    return Signed(
        key,
        name=subject["name"],
        digest=str(subject["digest"]["sha256"]),
        files=len(statement["predicate"]["resources"]),
    )


def _normal_pem(path: Path) -> bytes:
    """Read a public key, and write it as the library and openssl do."""
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_public_key(path.read_bytes())
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _bad_key(path: Path, kind: str, error: Exception) -> str:
    if isinstance(error, OSError):
        why = error.strerror or str(error)
    elif "assword" in str(error):
        why = "encrypted, and the passphrase is missing or wrong (--passphrase-file)"
    else:
        why = f"not a {kind} key of an elliptic curve as PEM ({' '.join(str(error).split())[:200]})"
    return f"{path}: {why}. To make a pair of keys: {MAKE_KEYS}"
