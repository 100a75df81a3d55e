"""Loaders give the stored rows, in every kind of process, and go on where they stopped."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featstore import FeatureStore
from featstore.errors import ConfigError, ShardCorrupt
from featstore.reading.torch_data import (
    FeatureDataset,
    FeatureLoader,
    as_array,
    as_tensor,
    gather_tensors,
)
from tests.featstore.stores import Array, field, make_columns, make_manifest, write_store

ROWS = 60


@pytest.fixture
def stored(tmp_path: Path) -> tuple[FeatureStore, dict[str, Array]]:
    """Raw, bfloat16 and compressed fields; row 7 is invalid."""
    manifest = make_manifest(
        num_rows=ROWS,
        shard_rows=16,
        fields={
            "cls": field(32),
            "bits": field(4, dtype="bfloat16"),
            "zipped": field(6, dtype="float32", codec="zstd"),
        },
    )
    columns = make_columns(manifest, invalid=[7])
    path = write_store(tmp_path / "s", manifest, columns, reasons={7: "broken"})
    return FeatureStore.open(path), columns


def check(batch: dict[str, Any], columns: dict[str, Array], names: list[str]) -> None:
    """A batch holds the rows that it names."""
    rows = batch["row"].numpy()
    for name in names:
        expected = as_tensor(np.ascontiguousarray(columns[f"fields/{name}"][rows]))
        assert batch[name].dtype == expected.dtype
        assert torch.equal(batch[name], expected)


def test_bfloat16_travels_as_bits() -> None:
    """Tensor to array and back is the same memory; no number is converted."""
    tensor = torch.randint(-(2**15), 2**15, (50,), dtype=torch.int16).view(torch.bfloat16)
    array = as_array(tensor)
    assert array.ctypes.data == tensor.data_ptr()
    assert as_tensor(array).data_ptr() == tensor.data_ptr()
    assert torch.equal(as_tensor(array).view(torch.int16), tensor.view(torch.int16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "context", "shuffle"),
    [
        (0, None, "rows"),
        (0, None, "blocks"),
        (0, None, "none"),
        (2, "fork", "auto"),
        (2, "spawn", "rows"),
    ],
)
def test_an_epoch_is_every_valid_row_once(
    stored: tuple[FeatureStore, dict[str, Array]],
    workers: int,
    context: str | None,
    shuffle: str,
) -> None:
    """In this process, in forked and in spawned ones; the parent has read some rows before."""
    store, columns = stored
    store.gather("cls", [1])
    names = ["cls", "bits", "zipped"]
    dataset = FeatureDataset(store, names, labels=True)
    loader = FeatureLoader(
        dataset, batch_size=16, shuffle=shuffle, workers=workers, context=context, drop_last=False
    )
    seen: list[int] = []
    for batch in loader:
        check(batch, columns, names)
        np.testing.assert_array_equal(batch["label"], columns["label"][batch["row"]])
        seen += batch["row"].tolist()
    assert len(seen) == 64, "the last step is filled up with the first rows"
    assert sorted(seen[: ROWS - 1]) == [row for row in range(ROWS) if row != 7]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_it_stopped(
    stored: tuple[FeatureStore, dict[str, Array]], workers: int
) -> None:
    """Batches that workers had fetched but nobody had used come again; the next epoch follows as if uninterrupted."""
    dataset = FeatureDataset(stored[0], ["cls"])

    def loader() -> FeatureLoader:
        return FeatureLoader(dataset, batch_size=8, workers=workers, seed=3)

    straight = loader()
    whole = [batch["row"].tolist() for _ in range(2) for batch in straight]
    first = loader()
    used = []
    for batch in first:
        used.append(batch["row"].tolist())
        if len(used) == 3:
            state = first.state_dict()
            break
    second = loader()
    second.load_state_dict(state)
    assert len(second) == 5
    rest = [batch["row"].tolist() for _ in range(2) for batch in second]
    assert used + rest == whole
    assert whole[:8] != whole[8:]


def test_every_kind_of_field_in_a_batch(stored: tuple[FeatureStore, dict[str, Array]]) -> None:
    """Unknown fields are refused when the data set is made, not in a worker later."""
    store, columns = stored
    batch = gather_tensors(store, ["cls", "bits"], np.array([3, 3, 9]))
    assert batch["cls"].shape == (3, 2, 32)
    np.testing.assert_array_equal(batch["cls"].numpy(), columns["fields/cls"][[3, 3, 9]])
    assert FeatureDataset(store, ["cls"])[5]["row"].tolist() == [5]
    with pytest.raises(ConfigError):
        FeatureDataset(store, ["nothing"])
    with pytest.raises(ConfigError, match="'some'"):
        FeatureLoader(FeatureDataset(store, ["cls"]), batch_size=2, shuffle="some")


def test_damage_in_a_worker_reaches_the_caller(
    stored: tuple[FeatureStore, dict[str, Array]],
) -> None:
    """A worker that meets a flipped byte ends the epoch with the error that names the rows."""
    store, _ = stored
    target = store.path / "fields/cls/c/1/0/0"
    data = bytearray(target.read_bytes())
    data[10] ^= 1
    target.write_bytes(data)
    loader = FeatureLoader(FeatureDataset(store, ["cls"]), batch_size=16, workers=1)
    with pytest.raises(ShardCorrupt, match=r"\b1\b.*16-31"):
        list(loader)
