"""Code examples of a card that read its store; they run in the folder of the card."""

import json

from featstore.format.manifest import Manifest


def examples(manifest: Manifest) -> list[str]:
    """Markdown with code that reads the store with this package and without it."""
    name = _example_field(manifest)
    lines = [
        "`pip install featstore-distill` (no torch is needed to read):",
        "",
        "```python",
        "from featstore import FeatureStore",
        "",
        'store = FeatureStore.open(".")  # the folder of this file',
        "ids = [store.sample_ids[row] for row in store.valid.nonzero()[0][:2]]",
    ]
    if name:
        spec = manifest.fields[name]
        shape = ", ".join(
            str(size) for size in (("views", *spec.shape) if spec.per_view else spec.shape)
        )
        lines.append(f"rows = store.gather({literal(name)}, store.rows_of(ids))  # (2, {shape})")
    lines += ["```", ""]
    if manifest.container == "zarr":
        column = name if name and manifest.fields[name].encoding.kind == "plain" else ""
        lines += [
            "Without this package, with any Zarr v3 reader:",
            "",
            "```python",
            "import zarr",
            "",
            'group = zarr.open_group(".", mode="r")',
            'valid = group["valid"][:]  # (N,) bool; invalid rows hold zeros',
            'ids = group["sample_id"][:2]',
        ]
        if column:
            lines.append(f"features = group[{literal(f'fields/{column}')}][:2]  # (2, {shape})")
        lines += ["```"]
    else:
        lines += [
            "Without this package, with the standard library (the tars are plain WebDataset):",
            "",
            "```python",
            "import json, pathlib, tarfile",
            "",
            'first = sorted(pathlib.Path("shards").rglob("*.tar"))[0]',
            "with tarfile.open(first) as tar:",
            '    member = next(item for item in tar if item.name.endswith(".json"))',
            "    sample = json.loads(tar.extractfile(member).read())",
            'print(sample["sample_id"], sample["valid"])',
            "```",
        ]
    return [
        *lines,
        "",
        "To train a student from it: `distill --store FOLDER` of the same project. The format is documented, versioned "
        "(version 1) and readable without this package.",
    ]


def _example_field(manifest: Manifest) -> str:
    """The field with the shortest rows that ``gather`` reads; "" if there is none."""
    kinds = {
        name: spec
        for name, spec in manifest.fields.items()
        if spec.encoding.kind in ("plain", "int8")
    }
    return min(
        kinds,
        key=lambda name: (name != "cls", kinds[name].dtype == "text", len(kinds[name].shape), name),
        default="",
    )


def literal(text: str) -> str:
    """An ASCII Python string that cannot end a block of code."""
    return json.dumps(text).replace("`", "\\u0060")
