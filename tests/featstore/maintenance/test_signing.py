"""A signature holds for exactly the files that were signed and for the key that signed them; all else is named."""

import base64
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from featstore.cli.main import main
from featstore.containers.metadata import metadata_files
from featstore.errors import ConfigError, StoreError, StoreIncomplete
from featstore.format.checksummed_json import seal, unseal
from featstore.format.ledger import entry_path, mark_complete, read_entry, remove_entries
from featstore.format.manifest import read_manifest
from featstore.maintenance.signing import SIGNATURE_NAME, check_signature, sign  # type: ignore[attr-defined]
from featstore.maintenance.verify import verify
from tests.featstore import golden


def write_keys(folder: Path, name: str, *, passphrase: bytes = b"") -> None:
    """A pair of keys, as openssl writes them."""
    key = ec.generate_private_key(ec.SECP256R1())
    how = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(private)
    (folder / f"{name}.pub").write_bytes(public)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed store of either container, with a card, and the keys of two people."""
    folder = tmp_path_factory.mktemp("signed")
    write_keys(folder, "alice")
    write_keys(folder, "mallory")
    for container in ("zarr", "webdataset"):
        path = golden.write(folder / container, container)  # type: ignore[arg-type]
        (path / "README.md").write_text("# A store\n")
        made = sign(path, folder / "alice.pem")
        assert made.sound
        assert made.name == container
    return folder


@pytest.fixture
def store(signed: Path, tmp_path: Path) -> Path:
    """A copy of the signed store under another name."""
    return shutil.copytree(signed / "zarr", tmp_path / "copy")


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_a_signature_holds(signed: Path, tmp_path: Path, container: str) -> None:
    """Wherever the store is copied to; it says how many files were signed, under which name, and by which key."""
    path = shutil.copytree(signed / container, tmp_path / "elsewhere")
    found = check_signature(path, signed / "alice.pub")
    assert found.sound
    assert found.name == container
    assert len(found.digest) == len(found.key) == 64
    names = {item.relative_to(path).as_posix() for item in path.rglob("*") if item.is_file()}
    unsigned = {SIGNATURE_NAME, ".lock", ".publish", *metadata_files(read_manifest(path))}
    assert found.files == len(names - unsigned)
    report = verify(path)
    assert report.sound
    assert report.foreign == []


def change(name: str) -> Callable[[Path], object]:
    """Put one byte more into a file."""
    return lambda path: (path / name).write_bytes((path / name).read_bytes() + b" ")


def rename(path: Path) -> None:
    """Another licence, under a seal that fits."""
    values = unseal((path / "manifest.json").read_bytes())
    values["teachers"]["teacher"]["licence"] = "MIT"
    (path / "manifest.json").write_bytes(seal(values))


def forge(path: Path) -> None:
    """Another feature, with checksums and the mark made again: only the signature can tell."""
    name = "fields/cls/c/0/0/0"
    data = bytearray((path / name).read_bytes())
    data[0] ^= 1
    (path / name).write_bytes(data)
    entry = unseal(entry_path(path, 0).read_bytes())
    size = entry["objects"][name]["block_bytes"]
    blocks = [bytes(data[i : i + size]) for i in range(0, len(data), size)]
    entry["objects"][name]["crc32c"] = "".join(f"{google_crc32c.value(b):08x}" for b in blocks)
    entry_path(path, 0).write_bytes(seal(entry))
    mark_complete(path, [read_entry(path, shard) for shard in range(2)])


TAMPERED: dict[str, tuple[Callable[[Path], object], str, list[str]]] = {
    "feature": (change("fields/cls/c/0/0/0"), "changed", ["fields/cls/c/0/0/0"]),
    "manifest": (rename, "changed", ["manifest.json"]),
    "card": (change("README.md"), "changed", ["README.md"]),
    "checksums made again": (
        forge,
        "changed",
        ["fields/cls/c/0/0/0", "ledger/00000000.json", "ledger/complete.json"],
    ),
    "object gone": (lambda path: (path / "valid/c/1").unlink(), "missing", ["valid/c/1"]),
    "card come": (lambda path: (path / "card.html").write_text("x"), "unsigned", ["card.html"]),
    "file come": (lambda path: (path / "fields/x").write_text("x"), "unsigned", ["fields/x"]),
    "link come": (lambda path: (path / "x").symlink_to("/etc"), "unsigned", ["x"]),
}


@pytest.mark.parametrize(("tamper", "what", "names"), TAMPERED.values(), ids=TAMPERED)
def test_what_was_tampered_with_is_named(
    store: Path, signed: Path, tamper: Callable[[Path], object], what: str, names: list[str]
) -> None:
    """Every file that changed, came or went."""
    tamper(store)
    found = check_signature(store, signed / "alice.pub")
    assert not found.sound
    assert getattr(found, what) == names


def test_a_forged_store_passes_every_check_but_the_signature(store: Path, signed: Path) -> None:
    """Checksums protect from accidents; from people only a key does."""
    forge(store)
    assert verify(store).sound
    assert not check_signature(store, signed / "alice.pub").sound


def test_metadata_of_the_container_may_be_made_again(store: Path, signed: Path) -> None:
    """It follows from the signed manifest; a pulled store has its own, in the spelling of another library."""
    for name in metadata_files(read_manifest(store)):
        values = json.loads((store / name).read_bytes())
        (store / name).write_text(json.dumps(values, indent=4))
    assert check_signature(store, signed / "alice.pub").sound
    assert verify(store).sound


def test_another_key_is_told(store: Path, signed: Path) -> None:
    """A signature by somebody else, though over these very files, is worth nothing."""
    found = check_signature(store, signed / "mallory.pub")
    assert "not a signature by this key" in found.problem
    sign(store, signed / "mallory.pem")
    assert "not a signature by this key" in check_signature(store, signed / "alice.pub").problem
    assert check_signature(store, signed / "mallory.pub").sound


def payload(signature: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """A signature whose statement somebody has changed."""
    bundle = json.loads(signature)
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    edit(statement)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps(bundle).encode()


NO_SIGNATURES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "no signature"),
    "deep": (lambda _: b"[" * 100_000, "no signature"),
    "numbers": (lambda _: b'{"dsseEnvelope": {"payload": 1}}', "no signature"),
    "cut": (lambda data: data[:-20], "no signature"),
    "long": (lambda _: b" " * 2**23, "longer than"),
    "of no files": (
        lambda data: payload(data, lambda said: said["predicate"]["resources"].clear()),
        "not a signature by this key",
    ),
    "of another name": (
        lambda data: payload(data, lambda said: said["subject"][0].update(name="x")),
        "not a signature by this key",
    ),
    "by weak hashes": (
        lambda data: payload(
            data, lambda said: said["predicate"]["serialization"].update(hash_type="md5")
        ),
        "expected sha256",
    ),
    "of a number": (
        lambda data: payload(data, lambda said: said["predicate"]["resources"].append(1)),
        "no signature",
    ),
}


@pytest.mark.parametrize(("make", "problem"), NO_SIGNATURES.values(), ids=NO_SIGNATURES)
def test_what_is_no_signature(
    store: Path, signed: Path, make: Callable[[bytes], bytes], problem: str
) -> None:
    """Whatever lies in the place of one is refused in words."""
    path = store / SIGNATURE_NAME
    path.write_bytes(make(path.read_bytes()))
    found = check_signature(store, signed / "alice.pub")
    assert problem in found.problem
    assert not found.sound


def test_no_signature(store: Path, signed: Path) -> None:
    """A store that nobody has signed, and one whose signature is a link."""
    (store / SIGNATURE_NAME).unlink()
    assert "never signed" in check_signature(store, signed / "alice.pub").problem
    (store / SIGNATURE_NAME).symlink_to(signed / "zarr" / SIGNATURE_NAME)
    assert "a link" in check_signature(store, signed / "alice.pub").problem


def test_what_is_not_signed(tmp_path: Path, signed: Path) -> None:
    """Nobody vouches for a store that is damaged, incomplete, or holds files that would not travel with it."""
    path = golden.write(tmp_path / "s", "zarr")
    (path / "notes.txt").write_text("x")
    with pytest.raises(StoreError, match=r"notes\.txt"):
        sign(path, signed / "alice.pem")
    (path / "notes.txt").unlink()
    data = (path / "valid/c/0").read_bytes()
    (path / "valid/c/0").write_bytes(bytes(len(data)))
    with pytest.raises(StoreError):
        sign(path, signed / "alice.pem")
    remove_entries(path, [0])
    with pytest.raises(StoreIncomplete, match=r"\b1\b"):
        sign(path, signed / "alice.pem")
    assert not (path / SIGNATURE_NAME).exists()


def test_keys(store: Path, signed: Path, tmp_path: Path) -> None:
    """Encrypted keys need their passphrase; what is no key of an elliptic curve is said, with the command for one."""
    write_keys(tmp_path, "locked", passphrase=b"sesame")
    (tmp_path / "passphrase").write_bytes(b"sesame\n")
    with pytest.raises(ConfigError, match="encrypted"):
        sign(store, tmp_path / "locked.pem")
    with pytest.raises(ConfigError):
        sign(store, tmp_path / "locked.pem", passphrase=b"wrong")
    key, words = str(tmp_path / "locked.pem"), str(tmp_path / "passphrase")
    assert main(["sign", str(store), "--private-key", key, "--passphrase-file", words]) == 0
    assert check_signature(store, tmp_path / "locked.pub").sound
    other = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa.pem").write_bytes(
        other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    for bad in (tmp_path / "rsa.pem", store / "manifest.json", tmp_path / "none.pem"):
        with pytest.raises(ConfigError, match="prime256v1"):
            sign(store, bad)
        with pytest.raises(ConfigError, match="prime256v1"):
            check_signature(store, bad)


def test_the_commands(
    store: Path, signed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status and words of ``sign`` and ``verify --public-key``; without the package, what to install."""
    assert main(["sign", str(store), "--private-key", str(signed / "alice.pem"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    key = ["--public-key", str(signed / "alice.pub")]
    assert main(["verify", str(store), *key, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["signature"]["sound"]
    assert said["signature"]["digest"] == made["digest"]
    assert main(["verify", str(store), *key]) == 0
    assert "signature  GOOD: " in capsys.readouterr().out
    (store / "card.html").write_text("x")
    assert main(["verify", str(store), *key]) == 1
    text = capsys.readouterr().out
    assert "signature  BAD: 1 files not signed: card.html" in text
    assert text.splitlines()[-1] == "verdict    sound, complete; the signature does not hold"
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert main(["verify", str(store), *key]) == 2
    assert "pip install 'featstore-distill[sign]'" in capsys.readouterr().err


def test_the_library_of_the_openssf_agrees(store: Path, signed: Path) -> None:
    """It accepts by itself what we signed, and refuses what we refuse; so does its command."""
    import model_signing

    config = model_signing.verifying.Config().use_elliptic_key_verifier(
        public_key=signed / "alice.pub"
    )
    config.verify(store, store / SIGNATURE_NAME)
    change("valid/c/0")(store)
    with pytest.raises(ValueError, match="'valid/c/0'"):
        config.verify(store, store / SIGNATURE_NAME)


def test_nothing_is_asked_of_a_network(
    store: Path, signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signing and checking open no socket."""
    monkeypatch.setattr("socket.socket", lambda *_, **__: pytest.fail("a socket"))
    sign(store, signed / "alice.pem")
    assert check_signature(store, signed / "alice.pub").sound
