"""Phase one into a bucket: the store of a folder, byte by byte, through the settings that a user gives."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest

import featstore
from featstore.errors import ConfigError, ManifestMismatch, ShardCorrupt, StoreIncomplete
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig, ViewsConfig
from featstore.extraction.run import run
from featstore.places.base import Retry
from featstore.sharing.pull import pull
from featstore.sharing.push import push
from featstore.sharing.verify_url import verify_url
from featstore.sources.config import SourceConfig
from featstore.writing.bucket import BucketStore
from tests.conftest import TINY_ARGS
from tests.featstore.stores import snapshot
from tests.servers.fixtures import OwnBucket


def settings(images: Path, weights: Path, path: str, **store: Any) -> ExtractConfig:
    """A run of the tiny ViT: int8 with scales that are measured, shards of 4."""
    return ExtractConfig(
        source=SourceConfig(kind="folder", path=str(images)),
        teacher=TeacherConfig(
            name="vit_tiny_patch16_224", weights=str(weights), image_size=32, model_args=TINY_ARGS
        ),
        views=ViewsConfig(seeded=1),
        store=StoreConfig(path=path, fields=["cls", "grid2"], dtype="int8", shard_rows=4, **store),
        batch_size=3,
        workers=0,
        max_invalid_share=0.5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_the_store_of_a_folder(
    image_folder: Path,
    teacher_file: Path,
    tmp_path: Path,
    s3: OwnBucket,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    container: Literal["zarr", "webdataset"],
) -> None:
    """With an image that cannot be read; planned, interrupted, resumed, opened, and refused to other settings."""
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    (images / "cat/00.jpg").write_bytes(b"not an image")
    local, url = tmp_path / "local", f"{s3.url}/s"
    run(settings(images, teacher_file, local.as_uri(), container=container))
    config = settings(images, teacher_file, url, container=container)

    run(dataclasses.replace(config, dry_run=True))
    assert not s3.names()
    assert f"store     {url}" in capsys.readouterr().out

    original, left = BucketStore.commit, [3]

    def interrupt(bucket: BucketStore, shard: Any) -> bool:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(bucket, shard)

    with monkeypatch.context() as patch:
        patch.setattr(BucketStore, "commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    with pytest.raises(StoreIncomplete):
        featstore.open(url)
    run(config)
    printed = capsys.readouterr().out
    assert "14 of them from this run" in printed
    assert f"--store {url}" in printed
    assert "skipped cat/00.jpg" in printed

    copy = tmp_path / "copy"
    for name, data in s3.files("s").items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    assert snapshot(copy) == snapshot(local)
    run(config)
    assert "0 of them from this run" in capsys.readouterr().out
    assert [row.sample_id for row in featstore.open(url).invalid_rows()] == ["cat/00.jpg"]

    other = dataclasses.replace(config, views=ViewsConfig(seeded=2))
    with pytest.raises(ManifestMismatch, match=f"{url}/manifest.json"):
        run(other)
    assert s3.get("s/manifest.json") == (copy / "manifest.json").read_bytes()


@pytest.mark.slow
def test_repair_on_a_copy(
    image_folder: Path,
    teacher_file: Path,
    tmp_path: Path,
    s3: OwnBucket,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is printed for an image that could not be read: pull, repair, push; and for a damaged object."""
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    images, copy, url = tmp_path / "my images", tmp_path / "copy", f"{s3.url}/s"
    shutil.copytree(image_folder, images)
    there, away = images / "cat/00.jpg", tmp_path / "away.jpg"
    there.rename(away)
    there.symlink_to(tmp_path / "nowhere")
    run(settings(images, teacher_file, url))
    assert f"featstore push FOLDER {url} --replace" in capsys.readouterr().out
    there.unlink()
    away.rename(there)
    pull(url, copy)
    run(dataclasses.replace(settings(images, teacher_file, str(copy)), repair=True))
    push(copy, url, replace=True)
    assert featstore.open(url).valid.all()

    name = next(name for name in s3.files("s") if name.startswith("fields/"))
    data = bytearray(s3.get(f"s/{name}"))
    data[0] ^= 1
    s3.put(f"s/{name}", bytes(data))
    with pytest.raises(ShardCorrupt, match=name):
        pull(url, tmp_path / "other", retry=Retry(attempts=1))
    run(settings(images, teacher_file, str(tmp_path / "again")))
    push(tmp_path / "again", url, replace=True)
    assert verify_url(url).sound


@pytest.mark.parametrize("change", [{"append": True}, {"repair": True}])
def test_what_a_url_refuses(change: dict[str, bool]) -> None:
    """Growing and mending are for copies in folders, and the error names the commands."""
    config = dataclasses.replace(
        ExtractConfig(store=StoreConfig(path="s3://bucket/s")),
        **change,  # type: ignore[arg-type]
    )
    with pytest.raises(ConfigError, match="featstore pull s3://bucket/s"):
        run(config)


def test_objects_beyond_one_request() -> None:
    """S3 takes 5 GiB in one request."""
    with pytest.raises(ConfigError, match="shard_mb 8000"):
        run(ExtractConfig(store=StoreConfig(path="s3://bucket/s", shard_mb=8000)))
