"""Write the rows of a store in another container or codec, or in shards of another size, bit by bit."""

from pathlib import Path

from featstore.derive.composition import Composition, artefact_bytes, compose, derived, whole
from featstore.errors import ConfigError
from featstore.files.progress import Progress, no_progress
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import Codec, Container, WorkRecord
from featstore.format.version import __version__
from featstore.planning.costs import shard_rows as fitting_rows
from featstore.reading.store import FeatureStore

MOST_SHARD_MB = 256
"""Most megabytes of the widest column of a shard, where the size of shards has to be chosen."""


def convert(
    source: Path,
    out: Path,
    *,
    container: Container | None = None,
    codec: Codec | None = None,
    shard_rows: int | None = None,
    progress: Progress = no_progress,
) -> Manifest:
    """Write the rows of a store in another container, codec or shard size, or resume. The fingerprint is unchanged.

    Arguments and errors as for ``featstore.convert``. Tars that mirror tars of images become shards of a power of two.
    """
    store = FeatureStore.open(source)
    old = store.manifest
    container = container or old.container
    if container == "webdataset" and codec not in (None, "raw"):
        raise ConfigError(
            f"--codec {codec} needs --container zarr; tars are compressed from outside."
        )
    wanted = "raw" if container == "webdataset" else codec
    fields = {
        name: record
        if record.dtype == "text" or wanted is None
        else record.model_copy(update={"codec": wanted})
        for name, record in old.fields.items()
    }
    origin = {
        "converted_by": f"featstore {__version__}",
        "converted_from": f"{old.container}, uuid {old.uuid}",
    }
    work = _cut(old, container, shard_rows)
    manifest = derived(old, origin, fields=fields, work=work, container=container)
    manifest = manifest.model_copy(update={"history": old.history})
    assert manifest.fingerprint == old.fingerprint, (manifest.fingerprint, old.fingerprint)
    if manifest.contract() == old.contract():
        raise ConfigError(
            f"{store.path}: is a {old.container} store with these codecs and shards already. Copy the folder to "
            "duplicate it."
        )
    files = artefact_bytes(store, list(old.artefacts))
    return compose(Composition(manifest, files, whole(store)), out, progress=progress)


def _cut(old: Manifest, container: Container, shard_rows: int | None) -> WorkRecord:
    if shard_rows is None and (container == old.container or not old.work.shard_sizes):
        return old.work
    rows = shard_rows or fitting_rows(
        old.fields, num_views=len(old.views), most_rows=old.work.shard_rows, most_mb=MOST_SHARD_MB
    )
    return WorkRecord(shard_rows=rows, batch_size=old.work.batch_size)
