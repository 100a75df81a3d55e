"""Read a store with Ray Data, one task for each shard: ray_data.py STORE FIELD."""

import sys

import numpy as np
import ray

import featstore


def read_store(store: str, fields: list[str]):
    def read_shard(batch):
        (shard,) = batch["id"].tolist()
        return featstore.shard_table(store, shard, fields)

    shards = len(featstore.open(store).shards)
    return ray.data.range(shards, override_num_blocks=shards).map_batches(read_shard, batch_size=1)


def main(store: str, field: str):
    def norms(batch):
        rows = [np.stack(row).astype(np.float32) for row in batch[field]]
        return {"norm": np.array([np.linalg.norm(row) for row in rows])}

    total = count = 0
    for batch in read_store(store, [field]).map_batches(norms).iter_batches():
        total, count = total + batch["norm"].sum(), count + len(batch["norm"])
    print(f"{count} rows, mean norm {total / count:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
