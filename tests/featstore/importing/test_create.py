"""Stores from the caller's own arrays: values come back, a kill loses no committed shard, errors name the rows."""

import hashlib
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featstore import FeatureStore
from featstore.cli.main import main
from featstore.errors import (
    ConfigError,
    ManifestMismatch,
    SourceError,
    StoreBusy,
    StoreIncomplete,
)
from featstore.format.manifest_records import (
    Container,
    FieldRecord,
    Int8Encoding,
    RaggedEncoding,
    TopKEncoding,
)
from featstore.format.views import make_views
from featstore.importing.create import create, from_arrays
from featstore.maintenance.verify import verify
from featstore.selection.groups import exact_duplicates
from tests.conftest import ROOT
from tests.featstore.stores import snapshot

N = 21
IDS = [f"photos/{row:03d}.jpg" for row in range(N)]
CLS = np.random.default_rng(0).standard_normal((N, 6)).astype(np.float32)


def add_all(path: Path, *, step: int = 5, **options: Any) -> FeatureStore:
    """One field, added in batches that are no shards."""
    given: dict[str, Any] = {
        "fields": {"cls": (6, "float32")},
        "ids": IDS,
        "teacher": "my model v3",
        "shard_rows": 4,
        **options,
    }
    with create(path, **given) as out:
        for start in range(0, N, step):
            out.add(cls=CLS[start : start + step])
    return FeatureStore.open(path)


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
@pytest.mark.parametrize("step", [1, 5, 8, N])
def test_what_was_added_comes_back(container: Container, step: int, tmp_path: Path) -> None:
    """However rows are cut into batches, the store is the same, sound, and holds the values."""
    store = add_all(tmp_path / "s", container=container, step=step)
    np.testing.assert_array_equal(store.gather("cls", range(N))[:, 0], CLS, strict=True)
    assert store.sample_ids == IDS
    assert store.valid.all()
    assert not store.content_sha256.any()
    report = verify(tmp_path / "s")
    assert report.sound
    assert report.complete
    assert any(str(N) in note for note in report.notes)  # rows without a hash are counted
    whole = add_all(tmp_path / "whole", container=container, step=N)
    assert snapshot(whole.path) == snapshot(store.path)


def test_every_kind_of_field(tmp_path: Path) -> None:
    """Grids of several views, top-k logits, ragged items, text, eight bits, masks, scalars; and torch's bfloat16."""
    views = make_views(canonical=True, seeded=1, mirrored=False)
    record = {"dims": ("class",), "meaning": "test", "teacher": "any"}
    fields: dict[str, Any] = {
        "grid": ((2, 2, 3), "bfloat16"),
        "mask": ((3,), "bool"),
        "caption": ((), "text"),
        "logits": FieldRecord(
            shape=(2,),
            dtype="float16",
            encoding=TopKEncoding(num_classes=7),
            **record,  # type: ignore[arg-type]
        ),
        "points": FieldRecord(
            shape=(3,),
            dtype="float32",
            encoding=RaggedEncoding(most_items=9),
            **record,  # type: ignore[arg-type]
        ),
        "boxes": FieldRecord(
            shape=(3,),
            dtype="float32",
            encoding=RaggedEncoding(most_items=9),
            per_view=False,
            **record,  # type: ignore[arg-type]
        ),
        "codes": FieldRecord(
            shape=(4,),
            dtype="float32",
            encoding=Int8Encoding(
                scheme="row", sample_rows=1, relative_l2=0, cosine_mean=1, cosine_worst=1
            ),
            **record,  # type: ignore[arg-type]
        ),
    }
    generator = np.random.default_rng(1)
    grid = torch.from_numpy(generator.standard_normal((N, 2, 2, 2, 3))).to(torch.bfloat16)
    logits = generator.permuted(np.tile(np.arange(7.0), (N, 2, 1)), axis=-1)
    points = [
        [np.full(((row + view) % 3, 3), row, np.float32) for view in (0, 1)] for row in range(N)
    ]
    with create(
        tmp_path / "s", fields=fields, ids=IDS, teacher="t", views=views, shard_rows=4
    ) as out:
        for start in range(0, N, 6):
            part = slice(start, start + 6)
            out.add(
                {"grid": grid[part]},
                mask=np.ones((N, 2, 3), bool)[part],
                caption=np.array([f"text {row}" for row in range(N)])[part],
                logits=logits[part],
                points=points[part],
                boxes=[views[0] for views in points[part]],
                codes=np.ones((N, 2, 4))[part],
            )
    store = FeatureStore.open(tmp_path / "s")
    assert verify(store.path).sound
    rows = list(range(N))
    np.testing.assert_array_equal(
        store.gather("grid", rows).astype(np.float32), grid.float().numpy()
    )
    assert store.gather("caption", rows).tolist() == [f"text {row}" for row in rows]
    top = store.gather_topk("logits", rows)
    np.testing.assert_array_equal(top.values[..., 0], 6)
    np.testing.assert_array_equal(top.indices, np.argsort(-logits, axis=-1)[..., :2])
    found = store.gather_ragged("points", rows)
    flat = [view for row in points for view in row]
    np.testing.assert_array_equal(found.values, np.concatenate(flat))
    np.testing.assert_array_equal(np.diff(found.offsets), [len(view) for view in flat])
    np.testing.assert_array_equal(
        np.diff(store.gather_ragged("boxes", rows).offsets), [len(row[0]) for row in points]
    )
    np.testing.assert_array_equal(store.gather("codes", rows), 1)


def test_whole_arrays(tmp_path: Path) -> None:
    """Shape and dtype are taken from the arrays; float64 becomes float32."""
    wide = CLS.astype(np.float64)
    from_arrays(
        tmp_path / "s", {"cls": torch.from_numpy(CLS).half(), "wide": wide}, IDS, teacher="t"
    )
    store = FeatureStore.open(tmp_path / "s")
    assert {name: field.dtype for name, field in store.manifest.fields.items()} == {
        "cls": "float16",
        "wide": "float32",
    }
    np.testing.assert_array_equal(store.gather("cls", [3, 1])[:, 0], CLS[[3, 1]].astype(np.float16))
    with pytest.raises(ConfigError, match="20"):
        from_arrays(tmp_path / "t", {"cls": CLS[:20]}, IDS, teacher="t")
    views = make_views(canonical=True, seeded=0, mirrored=True)
    both = np.stack([CLS, -CLS], axis=1)
    from_arrays(tmp_path / "views", {"cls": both}, IDS, teacher="t", views=views)
    found = FeatureStore.open(tmp_path / "views").gather("cls", [3, 1])
    np.testing.assert_array_equal(found, both[[3, 1]])


def test_labels(tmp_path: Path) -> None:
    """Numbers, names, and samples without a label; an ignore label of another kind is refused with the ids."""
    names: list[Any] = ["dog", None, "cat"] * 7
    store = add_all(tmp_path / "names", labels=names)
    assert store.manifest.source.class_names == ("cat", "dog")
    assert store.labels.tolist() == [1, -1, 0] * 7
    assert add_all(tmp_path / "numbers", labels=np.arange(N) - 1).labels.tolist() == list(
        range(-1, N - 1)
    )
    wrong = np.zeros(N, np.int64)
    wrong[[2, 5]] = -100, 5_000_000_000
    with pytest.raises(ConfigError, match=r"002.*-100.*005.*5000000000"):
        add_all(tmp_path / "wrong", labels=wrong)
    with pytest.raises(ConfigError, match=r"20.*21"):
        add_all(tmp_path / "few", labels=[0] * 20)
    with pytest.raises(ConfigError, match="bird"):
        add_all(tmp_path / "odd", labels=["bird"] * N, class_names=["cat"])


def test_content_hashes(tmp_path: Path) -> None:
    """Bytes, hexadecimal texts or a function of the id; without them no two rows are copies of each other."""
    digests = [hashlib.sha256(name.encode()).digest() for name in IDS]
    table = np.frombuffer(b"".join(digests), np.uint8).reshape(N, 32)
    given: tuple[Any, ...] = (
        table,
        [digest.hex() for digest in digests],
        lambda name: hashlib.sha256(name.encode()).digest(),
    )
    for number, hashes in enumerate(given):
        store = add_all(tmp_path / str(number), content_sha256=hashes)
        np.testing.assert_array_equal(store.content_sha256, table)
    for wrong in (table[:3], ["zz"] * N, table.astype(np.int64)):
        with pytest.raises(ConfigError):
            add_all(tmp_path / "wrong", content_sha256=wrong)
    assert exact_duplicates(add_all(tmp_path / "none")) == []


# ------------------------------------------------------------------------------------ resume


def test_a_run_that_stopped_is_resumed(tmp_path: Path) -> None:
    """Rows of written shards are skipped, whether they are added again or left out; the bytes are those of one run."""
    path = tmp_path / "s"
    options: dict[str, Any] = {
        "fields": {"cls": (6, "float32")},
        "ids": IDS,
        "teacher": "my model v3",
        "shard_rows": 4,
    }
    with pytest.raises(ZeroDivisionError), create(path, **options) as out:  # noqa: PT012
        assert out.rows_done == 0
        out.add(cls=CLS[:10])
        raise ZeroDivisionError
    with pytest.raises(StoreIncomplete, match="featstore import"):
        FeatureStore.open(path)
    with pytest.raises(StoreIncomplete, match="8"), create(path, **options) as out:  # noqa: PT012
        assert out.rows_done == 8
        out.add(cls=CLS[:4])
    with create(path, **options) as out:
        with pytest.raises(ConfigError, match="9"):
            out.add(cls=CLS[9:], start=9)
        out.add(cls=CLS[6:10], start=6)  # not at the beginning of a shard
        out.add(cls=CLS[10:])
    assert snapshot(path) == snapshot(add_all(tmp_path / "straight").path)
    with create(path, **options) as out:  # there is nothing to do
        assert out.rows_done == N


@pytest.mark.slow
def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    """SIGKILL in the middle: what was committed stays, what was staged is cleared away."""
    code = (
        "import sys, os, time, numpy as np\n"
        "from featstore.importing.create import create\n"
        "from tests.featstore.importing.test_create import CLS, IDS, N\n"
        "with create(sys.argv[1], fields={'cls': (6, 'float32')}, ids=IDS, teacher='my model v3', shard_rows=4) as o:\n"
        "    for start in range(o.rows_done, N):\n"
        "        o.add(cls=CLS[start:start + 1], start=start)\n"
        "        if start == int(sys.argv[2]): print('there', flush=True); time.sleep(60)\n"
    )
    path = tmp_path / "s"
    for stop in (6, 15):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(stop)], stdout=subprocess.PIPE, cwd=ROOT
        ) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == b"there\n"
            with pytest.raises(StoreBusy):
                add_all(path)
            run.send_signal(signal.SIGKILL)
    assert snapshot(add_all(path).path) == snapshot(add_all(tmp_path / "straight").path)
    assert not [item for item in path.rglob("*") if item.name.startswith(".partial-")]


def test_memory_is_that_of_a_few_shards(tmp_path: Path) -> None:
    """A store of 80 MB takes less than 20 MB."""
    rows, width = 20_000, 1024
    batch = np.ones((500, width), np.float32)
    tracemalloc.start()
    with create(
        tmp_path / "s",
        fields={"cls": (width, "float32")},
        ids=(str(row) for row in range(rows)),
        teacher="t",
        shard_rows=1024,
    ) as out:
        for _ in range(0, rows, 500):
            out.add(cls=batch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


# ------------------------------------------------------------------------------------ errors


def test_wrong_rows_are_refused(tmp_path: Path) -> None:
    """Each error names what was found and what was expected; nothing of a refused batch is stored."""
    path = tmp_path / "s"
    fields: Any = {"cls": (6, "float16"), "n": ((), "uint8")}
    with create(path, fields=fields, ids=IDS, teacher="t") as out:
        n = np.zeros(N)
        for given, match in (
            ({"cls": CLS}, "'cls', 'n'"),
            ({"cls": CLS, "n": n, "x": n}, "'x'"),
            ({"cls": CLS[:, :5], "n": n}, "5.*6"),
            ({"cls": CLS[:4], "n": n}, "4.*21"),
            ({"cls": np.concatenate([CLS, CLS]), "n": np.zeros(2 * N)}, "42.*21"),
            ({"cls": CLS, "n": n + 0.5}, "uint8"),
            ({"cls": CLS, "n": n + 256}, "uint8"),
            ({"cls": CLS, "n": n - 1}, "uint8"),
            ({"cls": CLS.astype(str), "n": n}, "float16"),
        ):
            with pytest.raises(ConfigError, match=match):
                out.add(given)
        for value in (np.nan, np.inf, 1e6):  # the last one is beyond float16
            odd = CLS.copy()
            odd[7, 2] = value
            with pytest.raises(ConfigError, match=IDS[7]):
                out.add(cls=odd, n=n)
        out.add(cls=CLS, n=n)
        with pytest.raises(ConfigError, match=r"22.*21"):
            out.add(cls=CLS[:1], n=n[:1])
    assert verify(path).sound


def test_rows_that_are_not_finite_can_be_marked(tmp_path: Path) -> None:
    """non_finite="invalid": the rows are there, invalid, zero, with the reason."""
    odd, path = CLS.copy(), tmp_path / "s"
    odd[[3, 20]] = np.nan
    fields: Any = {"cls": (6, "float32"), "n": ((), "int64")}
    with create(path, fields=fields, ids=IDS, teacher="t", non_finite="invalid") as out:
        out.add(cls=odd, n=np.arange(N))
    store = FeatureStore.open(path)
    assert [item.sample_id for item in store.invalid_rows()] == [IDS[3], IDS[20]]
    assert verify(path).sound


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    """Before a folder is made."""
    path = tmp_path / "s"
    with pytest.raises(SourceError, match=r"000"):
        add_all(path, ids=[*IDS[:-1], IDS[0]])
    with pytest.raises(SourceError):
        add_all(path, ids=[])
    for wrong in (  # type: ignore[var-annotated]
        {"fields": {}},
        {"fields": {"cls": (6, "float64")}},
        {"fields": {"../cls": (6, "float32")}},
        {"teacher": ""},
        {"weights_sha256": "abc"},
        {"path": "s3://bucket/store"},
        {"preprocessing": {"size": 224, "crop": 1}},
    ):
        with pytest.raises(ConfigError):
            add_all(**{"path": path, **wrong})  # type: ignore[arg-type]
    assert not path.exists()
    add_all(path)
    with pytest.raises(ManifestMismatch, match="my model v4"):
        add_all(path, teacher="my model v4")


# ------------------------------------------------------------ such a store is a store


def test_every_command_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inspect, verify, merge, append, split, requantise, convert, push, pull and card."""
    store, more = tmp_path / "s", tmp_path / "more"
    add_all(store, labels=["a", "b", "c"] * 7)
    others = [f"others/{row}.jpg" for row in range(N)]
    add_all(more, ids=others, labels=["a", "b", "c"] * 7)
    for argv in (
        ["inspect", str(store)],
        ["inspect", str(store), "--duplicates"],
        ["verify", str(store)],
        ["merge", str(store), str(more), str(tmp_path / "both")],
        ["split", str(store), f"{tmp_path / 'a'}=0.5", f"{tmp_path / 'b'}=0.5"],
        ["requantise", str(store), str(tmp_path / "int8"), "--dtype", "int8"],
        ["convert", str(store), str(tmp_path / "tars"), "--container", "webdataset"],
        ["card", str(store)],
        ["push", str(store), str(tmp_path / "place")],
        ["pull", str(tmp_path / "place"), str(tmp_path / "copy")],
        ["append", str(store), str(more)],
    ):
        assert main(argv) == 0, (argv, capsys.readouterr())
    assert "not known" in (store / "README.md").read_text()
    both, grown = FeatureStore.open(tmp_path / "both"), FeatureStore.open(store)
    assert both.sample_ids == grown.sample_ids == [*IDS, *others]
    np.testing.assert_array_equal(both.gather("cls", range(N, 2 * N))[:, 0], CLS)
    for path in ("both", "copy", "int8", "tars", "s"):
        assert verify(tmp_path / path).sound
    # Two stores of one name are of one model; of another name they are not mixed.
    add_all(tmp_path / "other", ids=others, teacher="another model")
    assert (
        main(["merge", str(store), str(tmp_path / "other"), str(tmp_path / "x"), "--as", "rows"])
        == 2
    )
    assert "another model" in capsys.readouterr().err
