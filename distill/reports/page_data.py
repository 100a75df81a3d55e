"""Data of a run's page that need the images or the store, written at the end of the run: thumbnails, maps, cost."""

# N test images, D teacher width, C student width, K classes

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.special import logsumexp
from torch import Tensor

from distill.data.joined import JoinedData
from distill.data.samples import Samples
from distill.data.schedule import Indices
from distill.evaluation.evaluate import Evaluation, largest, typical
from distill.evaluation.predictions import Predictions
from distill.measures.feature_similarity import thin_out
from distill.reports.run_files import EXTRACTION, FEATURE_MAP, HARDEST, REPORT, TYPICAL, Row
from distill.reports.tables import write_csv
from featstore import FeatureStore
from featstore.display.feature_map import embed
from featstore.errors import FeatstoreError
from featstore.files.atomic import write_bytes, write_json
from featstore.sources.decode import decode_image

Customise = Callable[[Tensor], Tensor]  # stored features (N, D) to the student's target, (N, C)

MOST_POINTS = 500
THUMBNAIL_PX = 128
CHUNK = 4096  # rows at a time
MOST_SHARDS = 10_000
"""Shards of a store whose ledger is read for the teacher's time; each is one small file."""


def write_page_data(
    folder: Path,
    data: JoinedData,
    test: Indices,
    measured: Evaluation,
    customise: Customise | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Write hardest.csv and, of tasks that draw, typical.csv with thumbnails, feature_map.csv and extraction.json.

    All are written below ``folder/report``.

    Args:
        test: (N,) indices of the test images in ``Samples``.
        customise: Maps stored features to the student's target, for methods that have one.
    """
    loss = losses(data, test, measured)
    if loss is not None:
        write_pictures(folder, HARDEST, largest(loss), data.samples, test, loss, measured.drawn)
        if measured.drawn:
            chosen = typical(len(loss))
            write_pictures(folder, TYPICAL, chosen, data.samples, test, loss, measured.drawn)
    places, features = features_of(data, test, measured, customise, device)
    write_feature_map(folder, named(data.samples, test, measured.predictions, places), features)
    write_extraction(folder, data)


def losses(data: JoinedData, test: Indices, measured: Evaluation) -> npt.NDArray[np.float64] | None:
    """(N,) loss of each image: cross entropy; the task's own; or 1 - cosine of embedded and stored feature.

    None if the evaluation has none of them.
    """
    if measured.errors is not None:
        return measured.errors
    if measured.predictions is not None:
        return hardness(measured.predictions)
    if measured.head is None:
        return None
    embedded = measured.head(measured.features)
    cosine = torch.nn.functional.cosine_similarity(
        embedded, data.features.take(test).float(), dim=1
    )
    return 1 - cosine.double().numpy()


def hardness(answers: Predictions) -> npt.NDArray[np.float64]:
    """(N,) cross entropy of the student's answer to each image, in nats."""
    losses = []
    # In chunks: 50,000 images of 1,000 classes are 400 MB in float64.
    for start in range(0, len(answers.labels), CHUNK):
        rows = slice(start, start + CHUNK)
        logits = answers.student[rows].astype(np.float64)
        right = np.take_along_axis(logits, answers.labels[rows, None], 1)[:, 0]
        losses.append(logsumexp(logits, axis=1) - right)
    return np.concatenate(losses)


def write_pictures(
    folder: Path,
    table: str,
    places: npt.NDArray[np.int64],
    samples: Samples,
    test: Indices,
    loss: npt.NDArray[np.float64],
    drawn: dict[int, Tensor],
) -> None:
    """Some test images, as a table and small JPEGs, as the task draws them where it does.

    Args:
        table: File name of the table, ``HARDEST`` or ``TYPICAL``.
        places: The images, by their place in the test part.
    """
    rows = []
    start = "" if table == HARDEST else f"{Path(table).stem}-"
    for rank, place in enumerate(places.tolist(), start=1):
        name = f"images/{start}{rank:02d}.jpg"
        try:
            if place in drawn:
                image = Image.fromarray(drawn[place].permute(1, 2, 0).numpy())
            else:
                image = thumbnail(samples.source.read(int(samples.positions[test[place]])))
            write_bytes(folder / REPORT / name, jpeg(image))
        except (FeatstoreError, OSError):
            name = ""
        row: Row = {"rank": rank, "place": place, "loss": round(float(loss[place]), 4)}
        shown = {"drawn": "yes" if place in drawn else ""} if drawn else {}
        rows.append({**row, "id": samples.ids[test[place]], "image": name, **shown})
    write_csv(folder / REPORT / table, rows)


def thumbnail(data: bytes) -> Image.Image:
    """A picture of at most ``THUMBNAIL_PX`` a side; small ones keep their size.

    Raises:
        DecodeError: the bytes are not a usable picture.
    """
    image = decode_image(data)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    return image


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


@torch.no_grad()
def features_of(
    data: JoinedData,
    test: Indices,
    measured: Evaluation,
    customise: Customise | None,
    device: torch.device | str,
) -> tuple[list[int], dict[str, npt.NDArray[np.float32]]]:
    """Features of the teacher, the customised teacher and the student of at most ``MOST_POINTS`` test images.

    Returns:
        Indices of these images among the test images, and their features (n, width) by name.
    """
    rows = thin_out(len(test), MOST_POINTS, seed=0)
    teacher = data.features.take(test[rows.numpy()])
    stored = data.settings.stored == "all"
    features = {"teacher": teacher.numpy()} if stored else {}
    if customise is not None and stored:
        features["customised"] = customise(teacher.to(device)).float().cpu().numpy()
    features["student"] = measured.features[rows].numpy()
    return rows.tolist(), features


def named(
    samples: Samples, test: Indices, answers: Predictions | None, places: list[int]
) -> list[Row]:
    """Ids of some test images, their classes ("" if unknown), and the student's answers if it has classes."""
    rows: list[Row] = []
    for place in places:
        label = int(samples.labels[test[place]])
        known = 0 <= label < len(samples.class_names)
        row = {"id": samples.ids[test[place]], "class": samples.class_names[label] if known else ""}
        if answers is not None:
            row["answer"] = str(answers.class_names[answers.student_class[place]])
        rows.append(row)
    return rows


def write_feature_map(
    folder: Path, rows: list[Row], features: dict[str, npt.NDArray[np.float32]]
) -> None:
    """Positions of the same images in a map of each feature.

    Args:
        rows: n rows of ``named``.
        features: (n, width) by name.
    """
    maps = embed(features)
    table = [
        row
        | {
            f"{name}_{axis}": round(float(points[number, column]), 3)
            for name, points in maps.items()
            for column, axis in enumerate("xy")
        }
        for number, row in enumerate(rows)
    ]
    write_csv(folder / REPORT / FEATURE_MAP, table)


def write_extraction(folder: Path, data: JoinedData) -> None:
    """Time and size of the stores of the run."""
    stores = [part.store for part in data.features.teachers]
    write_json(folder / REPORT / EXTRACTION, {"stores": [extraction(store) for store in stores]})


def extraction(store: FeatureStore) -> dict[str, object]:
    """Rows, views, bytes and seconds of a store; the last two are None with more than ``MOST_SHARDS`` shards."""
    seconds: Counter[str] = Counter()
    size = 0
    readable = len(store.shards) <= MOST_SHARDS
    for shard in store.shards if readable else []:
        entry = store.entry(shard)
        seconds.update(entry.seconds)
        size += sum(item.bytes for item in entry.objects.values())
    rounded = {name: round(value, 1) for name, value in sorted(seconds.items())}
    return {
        "fingerprint": store.fingerprint,
        "teachers": [teacher.name for teacher in store.manifest.teachers.values()],
        "rows": store.num_rows,
        "views": len(store.manifest.views),
        "bytes": size if readable else None,
        "seconds": rounded if readable else None,
    }
