"""``featstore sign``."""

import argparse
from dataclasses import asdict
from pathlib import Path

from featstore.cli.arguments import STORE, show, value
from featstore.errors import ConfigError
from featstore.format.file_names import SIGNATURE_NAME
from featstore.maintenance import signing

DESCRIPTION = f"""\
Check every byte of a store and sign it with the OpenSSF's model-signing. The signature is written into the store as
{SIGNATURE_NAME}. Write the card first (featstore card): it is signed too. To check it, run
featstore verify STORE --public-key KEY.pub. No network is used. To make a pair of keys:
  {signing.MAKE_KEYS}
"""

ARGUMENTS = {
    "store": STORE,
    "--private-key": value(
        "elliptic curve key as PEM (P-256, P-384 or P-521)", Path, required=True, metavar="KEY.pem"
    ),
    "--passphrase-file": value(
        "file whose first line is the passphrase of an encrypted key", Path, metavar="FILE"
    ),
}


def run(arguments: argparse.Namespace) -> int:
    """Sign a store."""
    passphrase = None
    if arguments.passphrase_file is not None:
        try:
            passphrase = arguments.passphrase_file.read_bytes().split(b"\n")[0].rstrip(b"\r")
        except OSError as error:
            raise ConfigError(f"{arguments.passphrase_file}: {error.strerror}.") from None
    signed = signing.sign(arguments.store, arguments.private_key, passphrase=passphrase)
    lines = [
        f"signed     {arguments.store}: {signed.files:,} files, digest {signed.digest}",
        f"key        sha256 {signed.key} of the public key",
        "next       give the public key to receivers by another way than the store; they run: featstore verify "
        f"{signed.name} --public-key KEY.pub",
    ]
    return show(arguments, asdict(signed), lines)
