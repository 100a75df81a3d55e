"""Read a store with Spark, one task for each shard: spark.py STORE FIELD."""

import sys

from pyspark.sql import SparkSession, functions
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

import featstore


def read_store(spark: SparkSession, store: str, fields: list[str]):
    def read_shard(shard: int):
        # Spark has no float16.
        return featstore.shard_table(store, shard, fields, float32=True)

    def read_shards(batches):
        for batch in batches:
            for shard in batch.column(0).to_pylist():
                yield from read_shard(shard).cast(lists).to_batches()

    shards = len(featstore.open(store).shards)
    schema = from_arrow_schema(read_shard(0).schema)
    lists = to_arrow_schema(schema)  # of any size: Spark has no lists of fixed size
    return spark.range(shards, numPartitions=shards).mapInArrow(read_shards, schema)


def main(store: str, field: str):
    rows = read_store(SparkSession.builder.getOrCreate(), store, [field])
    rows.orderBy("row").select("row", "sample_id", functions.size(field)).show(5)
    print(f"{rows.count()} rows")


if __name__ == "__main__":
    main(*sys.argv[1:])
