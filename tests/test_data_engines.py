"""The examples that read a store with Ray Data and Spark: every valid row once, with its id and its numbers."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from featstore import FeatureStore
from tests.conftest import ROOT
from tests.featstore.parts import made, write
from tests.test_engines import run

pytestmark = [pytest.mark.slow, pytest.mark.engine]

EXAMPLES = ROOT / "docs" / "examples"
RAY = """
import json, sys
sys.path[:0] = sys.argv[1:2]
import ray
from ray_data import main, read_store
ray.init(num_cpus=2, include_dashboard=False)
tables = list(read_store(sys.argv[2], ["cls", "points"]).iter_batches(batch_format="pyarrow"))
dtype = str(tables[0].schema.field("cls").type.value_type.value_type)
rows = [row for table in tables for row in table.to_pylist()]
kept = {row["sample_id"]: [row["cls"], row["points"]] for row in rows}
print("FOUND", json.dumps([dtype, len(rows), kept]))
main(sys.argv[2], "cls")
"""
SPARK = """
import json, sys
sys.path[:0] = sys.argv[1:2]
from pyspark.sql import SparkSession
from spark import main, read_store
spark = SparkSession.builder.master("local[2]").getOrCreate()
rows = read_store(spark, sys.argv[2], ["cls", "points"])
dtype = dict(rows.dtypes)["cls"]
rows = rows.collect()
kept = {row["sample_id"]: [row["cls"], row["points"]] for row in rows}
print("FOUND", json.dumps([dtype, len(rows), kept]))
main(sys.argv[2], "cls")
"""


def read(script: str, dtype: str, folder: Path) -> str:
    """Run a script on a store of 20 rows in several shards and compare what it read; returns what it printed."""
    rows = made(20, invalid={3: "broken"})
    store = FeatureStore.open(write(rows, folder / "store"))
    assert len(store.shards) > 1
    printed = run(
        [sys.executable, "-c", script, str(EXAMPLES), str(store.path)],
        PYSPARK_PYTHON=sys.executable, PYTHONPATH=str(ROOT),
        SPARK_LOCAL_IP="127.0.0.1",
    )  # fmt: skip
    line = next(line for line in printed.splitlines() if "FOUND" in line)
    found_dtype, count, kept = json.loads(line.partition("FOUND ")[2])
    valid = [row for row in range(20) if row != 3]
    assert (found_dtype, count) == (dtype, len(valid))
    for row in valid:
        cls, points = kept[rows.ids[row]]
        np.testing.assert_array_equal(np.array(cls, np.float16), rows.values["cls"][row])
        assert points == [view.tolist() for view in rows.values["points"][row]]
    return printed


def test_ray_data(tmp_path: Path) -> None:
    """float16 stays float16, and point sets keep their lengths."""
    pytest.importorskip("ray", reason="no Ray Data: pip install 'ray[data]'")
    assert "19 rows, mean norm" in read(RAY, "halffloat", tmp_path)


def test_spark(tmp_path: Path) -> None:
    """float16 is widened, which Spark does not have, and point sets keep their lengths."""
    if importlib.util.find_spec("pyspark") is None or shutil.which("java") is None:
        pytest.skip("no Spark: pip install pyspark; apt-get install default-jre-headless")
    assert "19 rows" in read(SPARK, "array<array<float>>", tmp_path)
