"""Make a store: of images and a teacher, of arrays, of files of other programs; estimate it before."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featstore.api.arguments import Dtype, Folder, Settings, address_of, given
from featstore.cli.progress_bar import progress_bar
from featstore.errors import ConfigError
from featstore.reading.store import FeatureStore

if TYPE_CHECKING:
    from featstore.planning.estimate import Estimate


def extract(
    images: Folder | None = None,
    *,
    teacher: str | Settings | None = None,
    out: Folder | None = None,
    fields: Sequence[str] | None = None,
    dtype: Dtype | None = None,
    views: Settings | None = None,
    source: Settings | None = None,
    store: Settings | None = None,
    texts: Sequence[Settings] | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    max_invalid_share: float | None = None,
    repair: bool = False,
    append: bool = False,
    recipe: Folder | None = None,
    progress: bool = True,
) -> FeatureStore:
    """Run a frozen teacher once over images and write its features into a store. Resumes a store that was begun.

    Arguments are the settings of a recipe; ``featstore extract --help`` describes all of them. Processes that
    ``accelerate launch`` or ``torchrun`` started share the work. Needs the extra ``featstore-distill[distill]``.

    Args:
        images: Folder of images, WebDataset tars (folder, glob or braces), a saved Hugging Face data set, or
            ``"digits"``. The kind is taken from what is there; ``source={"kind": ...}`` sets it.
        teacher: Model name (timm, with its tag after a dot), or the settings of section ``teacher``, e.g.
            ``{"library": "open_clip", "name": "ViT-B-32", "tag": "laion2b_s34b_b79k"}``.
        out: Folder of the store, or its URL in a bucket (s3://, gs://, az://).
        fields: What to store of each image: cls, mean, pooled, tokens, projected, logits, gridK or logits_topK.
            Default: cls.
        dtype: Type of the stored numbers. Default: float16.
        views: Settings of section ``views``, e.g. ``{"seeded": 4}`` for four random crops per image. Default: the
            canonical view.
        source: Further settings of section ``source``, e.g. ``{"include": ["train/*"]}``.
        store: Further settings of section ``store``, e.g. ``{"container": "webdataset"}``.
        texts: Text tables from the teacher's text side, e.g. ``[{"name": "en", "templates": ["a photo of a {}."]}]``.
        batch_size: Images per forward pass of one process. Default: 64.
        workers: Processes that decode images, per process with a teacher. Default: 2.
        max_invalid_share: Share of unusable images above which ``TooManyInvalid`` is raised. Default: 0.01.
        repair: Check every byte of the store first, and make damaged shards again.
        append: The store is finished and the source has more images: add the new ones.
        recipe: YAML file with settings that hold where no argument is given; ``"digits"`` is the one of the package.

    Raises:
        ConfigError: A setting is missing, unknown or out of range.
        SourceError: The images cannot be listed.
        TeacherError: The teacher cannot be built, or does not have a field.
        ManifestMismatch: The folder holds a store that was made with other settings.
        TooManyInvalid: The store is complete, but too many images were unusable.

    Examples:
        The notebook ``docs/two_phases.ipynb`` runs it on the digits::

            store = featstore.extract("photos/", teacher="vit_small_patch14_dinov2.lvd142m", out="stores/photos")
    """
    from featstore.cli.schema import build_config
    from featstore.extraction.config import DEFAULT_RECIPE, ExtractConfig
    from featstore.extraction.run import run
    from featstore.sources.config import source_of

    named = {"name": teacher} if isinstance(teacher, str) else dict(teacher or {})
    sections: dict[str, dict[str, Any]] = {
        "source": {
            **(source_of(address_of(images)) if images is not None else {}),
            **(source or {}),
        },
        "teacher": named,
        "views": dict(views or {}),
        "store": {
            **given(path=out and address_of(out), fields=fields and list(fields), dtype=dtype),
            **(store or {}),
        },
    }
    values: dict[str, Any] = {name: section for name, section in sections.items() if section}
    values |= given(texts=texts and [*map(dict, texts)])
    values |= given(batch_size=batch_size, workers=workers, max_invalid_share=max_invalid_share)
    values |= {"repair": repair, "append": append}
    if recipe is None and (images is None or out is None or teacher is None):
        raise ConfigError("featstore.extract: give images, teacher and out, or a recipe.")
    file = DEFAULT_RECIPE if recipe == "digits" else None if recipe is None else Path(recipe)
    config = build_config(ExtractConfig, values, recipe=file)
    run(config, progress=progress)
    return FeatureStore.open(config.store.path)


def from_arrays(
    out: Folder,
    fields: Mapping[str, Any],
    ids: Iterable[str],
    *,
    teacher: str | None,
    **options: Any,
) -> FeatureStore:
    """Make a store of whole arrays. For rows that come in batches, see ``featstore.create``.

    Args:
        fields: Arrays by name of the field, (N, *shape) each, or (N, V, *shape) with several ``views``; numpy or torch,
            e.g. memory-mapped. Types stay, except that float64 is stored as float32.
        ids: (N,) sample ids. With images, use the paths below their folder, so that ``distill`` finds them.
        teacher: Name and version of the model that computed the arrays; None if no model did.
        options: Further arguments of ``featstore.create``: ``labels``, ``preprocessing``, ``content_sha256``, ...

    Raises:
        ConfigError: Arrays, ids or labels do not fit together.
        SourceError: Ids repeat or are empty.
        ManifestMismatch: The folder holds a store that was made with other arguments.

    Examples:
        >>> arrays = {"cls": numpy.ones((2, 4))}
        >>> store = featstore.from_arrays("stores/two", arrays, ["a.jpg", "b.jpg"], teacher="mine v3")
        >>> store.gather("cls", [0, 1]).shape
        (2, 1, 4)
    """
    from featstore.importing.create import from_arrays

    from_arrays(address_of(out), fields, ids, teacher=teacher, **options)
    return FeatureStore.open(address_of(out))


def import_(
    source: Folder,
    out: Folder,
    *,
    teacher: str,
    kind: Literal["npy", "parquet", "hf", "clip-retrieval"] | None = None,
    fields: Mapping[str, str] | None = None,
    ids: str | None = None,
    labels: str | None = None,
    dtype: str | None = None,
    images: Folder | None = None,
    progress: bool = True,
    **options: Any,
) -> FeatureStore:
    """Make a store of features that another program wrote. Resumes when it is called again.

    Args:
        source: npy file or folder, Parquet files, a saved Hugging Face data set, or a folder of clip-retrieval.
        teacher: Name and version of the model that computed the features.
        kind: Format of ``source``; by default taken from what is there.
        fields: Column or file by name of the field; by default all columns of floating point lists.
        ids: Column or file of the sample ids.
        labels: Column or file of the labels.
        dtype: Type of the stored numbers; by default as they are.
        images: Folder of the images; binds the rows to the images by the SHA-256 of their bytes.
        options: Further arguments of ``featstore.create``: ``preprocessing``, ``container``, ...

    Raises:
        SourceError: The source cannot be read, or ids repeat.
        MissingSamples: Images of some ids are missing.
        ConfigError, ManifestMismatch: As for ``featstore.create``.

    Examples:
        >>> numpy.save("cls.npy", numpy.ones((2, 4)))
        >>> numpy.save("ids.npy", ["a.jpg", "b.jpg"])
        >>> featstore.import_("cls.npy", "stores/mine", ids="ids.npy", teacher="mine v3").num_rows
        2
    """
    from featstore.importing.imports import import_

    with progress_bar(" rows", show=progress) as report:
        import_(
            address_of(source),
            address_of(out),
            teacher=teacher,
            kind=kind,
            fields=fields,
            ids=ids,
            labels=labels,
            dtype=dtype,
            images=None if images is None else address_of(images),
            progress=report,
            **options,
        )
    return FeatureStore.open(address_of(out))


def plan(
    images: int,
    fields: Mapping[str, Sequence[int]],
    *,
    dtype: Dtype = "float16",
    views: int = 1,
    shard_rows: int = 4096,
    images_per_second: float | None = None,
    path: Folder | None = None,
) -> "Estimate":
    """Estimate bytes, files and hours of a store before it is made.

    Args:
        images: Number of images.
        fields: Name and shape of each field, e.g. ``{"cls": (1024,), "grid7": (7, 7, 1024)}``.
        dtype: Type of the stored numbers.
        views: Views per image.
        shard_rows: Most rows of a shard.
        images_per_second: Rate of the teacher, all processes together; gives the hours.
        path: Folder where the store would go; its disk is measured and its free space compared.

    Returns:
        The estimate; ``print`` shows it, with the sizes in other types and codecs.

    Raises:
        ConfigError: A number or a shape is out of range.

    Examples:
        >>> estimate = featstore.plan(1_281_167, {"cls": (1024,)})
        >>> estimate.bytes, estimate.shards
        (2623830016, 313)
    """
    from featstore.planning.estimate import Wanted, estimate

    wanted = [Wanted(name, tuple(shape), dtype) for name, shape in fields.items()]
    return estimate(
        images,
        wanted,
        views=views,
        shard_rows=shard_rows,
        images_per_second=images_per_second,
        path=None if path is None else Path(path),
    )
