"""What all runs of one command share: checked store, joined images, views in use, the teacher's probe."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from distill.config import DataConfig, DistillConfig, TeacherConfig
from distill.data.join_samples import join_samples
from distill.data.match_views import match_views
from distill.data.pictures import (
    BatchMaker,
    Changes,
    PictureCache,
    ViewDataset,
)
from distill.data.points import PointDataset, TurnedAboutZ
from distill.data.rules import PointRule, TextRule, UncutRule, rule_of
from distill.data.samples import NO_ROW, Samples, Split
from distill.data.schedule import Indices, ViewPicker, allowed_columns
from distill.data.split_parts import split_parts
from distill.data.stored_features import Features, Grid, StoredField, check_vector, reference_column
from distill.data.targets import Targets
from distill.data.teacher_classifier import stored_classifier
from distill.data.texts import TextDataset
from distill.measures.feature_similarity import thin_out
from distill.measures.linear_probe import LinearProbe
from distill.measures.linear_probe import fit_probe as fit_probe
from distill.student.model import Student
from featstore import FeatureStore
from featstore.errors import ConfigError, shorten
from featstore.files.array_types import Array
from featstore.format.class_logits import class_names_of
from featstore.sources.base import NO_LABEL, Source
from featstore.sources.load import ViewRule

LABELLED_AT_ONCE = 65_536  # rows of logits in memory at a time


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images and what is known of them; without a store this is enough to measure a student."""

    samples: Samples  # images that take part
    rule: ViewRule  # how the student's region of an image is cut
    settings: DataConfig  # settings that selected the images
    # decoded views by the megabytes they may take, see ``cache``
    caches: dict[int, PictureCache] = dataclasses.field(default_factory=dict)
    targets: Targets | None = None  # of the task, where its labels are no classes
    # inputs of students of texts, by how they encode
    encoded: dict[str, dict[int, Array]] = dataclasses.field(default_factory=dict)

    def split(self, seed: int, *, measured: Literal["test", "validation"] = "test") -> Split:
        """The parts of one run.

        Args:
            seed: Seed of the run; decides which labels are drawn.
            measured: Part that takes the place of the test part.
        """
        part = split_parts(self.samples, self.settings, seed)
        if measured == "test":
            return part
        if not len(part.validation):
            raise ConfigError(
                "--eval.part validation needs images that are held out for it: --data.validation (images per class) "
                "or --data.validation_share."
            )
        return dataclasses.replace(part, test=part.validation)

    def cache(self, megabytes: int) -> PictureCache:
        """Decoded views that all runs over these images share, as far as they load in one process."""
        return self.caches.setdefault(megabytes, PictureCache(megabytes))

    def dataset(
        self,
        student: Student,
        *,
        changes: Changes | None = None,
        cache: PictureCache | None = None,
        rule: ViewRule | None = None,
    ) -> ViewDataset:
        """Images at the student's size, texts as it encodes them, or point clouds, cut by ``rule`` or by the data's."""
        rule = rule or self.rule
        encode, points = (getattr(student.model, name, None) for name in ("encode", "points"))
        takes = (
            "images" if encode is points is None else "point clouds" if encode is None else "texts"
        )
        given = {TextRule: "texts", PointRule: "point clouds"}.get(type(rule), "images")
        if takes != given:
            raise ConfigError(
                f"--student.name {student.name}: takes {takes}, but the samples of {self.samples.source.uri} are "
                f"{given}. For texts: --student.name hashed_text or text_transformer; for point clouds: pillars."
            )
        if isinstance(rule, PointRule):
            assert points is not None
            rule.check(points, student.name)
            return PointDataset(
                self.samples,
                rule,
                size=(points.most_points, points.columns),
                changes=TurnedAboutZ(),
                cache=cache,
            )
        if isinstance(rule, TextRule):
            assert encode is not None
            return TextDataset(
                self.samples,
                encode,
                student.input_size[1],
                known=self.encoded.setdefault(str(student.model.encoding), {}),
                megabytes=self.settings.cache_mb,
            )
        return ViewDataset(
            self.samples,
            rule,
            size=student.input_size,
            changes=changes,
            cache=cache,
            targets=self.targets,
            reduced=self.settings.decode == "reduced",
        )

    def maker(self, student: Student, device: torch.device) -> BatchMaker:
        """Batches with the student's normalisation; no stored features."""
        return BatchMaker(self.samples, mean=student.mean, std=student.std, device=device)


@dataclass(frozen=True, kw_only=True)
class JoinedData(Data):
    """Images joined to the rows of a feature store."""

    store: FeatureStore  # feature store of the first teacher
    features: Features  # stored features of the samples
    columns: list[int]  # columns of the view axis that training picks from
    grid_field: str = ""  # field with patch grids; "" takes the largest when a method needs one

    @functools.cached_property
    def grid(self) -> Grid:
        """Stored patch grids of the samples, by the teacher that made the vectors.

        Raises:
            ConfigError: the store has none, or not the one that was asked for.
        """
        teacher = self.store.manifest.fields[self.features.field].teacher
        return Grid(self.store, self.grid_field, self.samples, teacher=teacher)

    @property
    def fingerprints(self) -> list[str]:
        """Fingerprints of the store, then of the further teachers' stores; see ``Manifest.fingerprint``."""
        return [teacher.store.fingerprint for teacher in self.features.teachers]

    def has_probe(self, part: Split) -> bool:
        """Whether a probe can be fitted: labelled images have rows, and a teacher's labels are not all the same."""
        if self.settings.stored != "all":
            return False
        if self.settings.labels == "source" or self.settings.classifier == "stored":
            return True
        return len(np.unique(self.samples.labels[part.labelled])) > 1

    def fit_probe(self, part: Split, *, most: int, seed: int) -> LinearProbe:
        """Fit a linear probe on the stored features of the labelled part (reference view), or read the stored one.

        Raises:
            ConfigError: fewer than two classes have a labelled image; or see ``stored_classifier``.
        """
        if self.settings.classifier == "stored":
            return stored_classifier(self.features, self.samples.class_names)
        chosen = few(part.labelled, most, seed)
        feature = self.features.take(chosen).numpy()
        return fit_probe(feature, self.samples.labels[chosen], num_classes=self.samples.num_classes)

    def picker(self, seed: int) -> ViewPicker:
        """Which of the views in use is shown in which pass of one run."""
        return ViewPicker(self.columns, self.samples.stored_ids, seed=seed)

    def stored_maker(
        self,
        student: Student,
        device: torch.device,
        *,
        vector: bool,
        grid: bool,
        fields: Sequence[str] = (),
    ) -> BatchMaker:
        """Batches with the student's normalisation, and the stored features of the same views."""
        return BatchMaker(
            self.samples,
            self.features if vector else None,
            self.grid if grid else None,
            mean=student.mean,
            std=student.std,
            device=device,
            fields={name: self.field(name) for name in fields},
        )

    def field(self, name: str) -> StoredField:
        """Any field of the first store with numbers of one shape per view."""
        columns = np.arange(len(self.store.manifest.views))
        return StoredField(self.store, name, self.samples.rows, columns)


def join_data(
    source: Source,
    store: FeatureStore,
    data: DataConfig,
    field: str,
    *,
    weight: float = 1.0,
    teachers: Sequence[TeacherConfig] = (),
    grid_field: str = "",
) -> JoinedData:
    """Check the settings against the stores and join images and rows, before anything is trained.

    Args:
        store: Store of the first teacher, which decides the views and the regions that the student is shown.
        data: Settings that select images and their views.
        weight: Weight of the first teacher among all.
        grid_field: Field of the first store with patch grids; "" takes the largest grid when a method needs one.

    Raises:
        ConfigError: patterns or fields that match nothing, or no labels.
        MissingSamples: images that a store does not hold, or of which it holds other bytes.
        ViewMismatch: views that a store does not hold.
    """
    columns = allowed_columns(store.manifest.views, data)
    stores = [FeatureStore.open(teacher.store) for teacher in teachers]
    for other, teacher in zip(stores, teachers, strict=True):
        check_vector(other, teacher.field, f"--teachers: field {teacher.field}")
    samples = join_samples(source, store, data, stores)
    if data.labels == "teacher":
        samples = _with_teacher_labels(samples, store, field)
    read = sorted({*columns, reference_column(store)})
    others = [
        StoredField(
            other,
            teacher.field,
            samples.other_rows[number],
            match_views(store, other, read, samples, number),
            teacher.weight,
        )
        for number, (other, teacher) in enumerate(zip(stores, teachers, strict=True))
    ]
    features = Features(store, field, samples, weight=weight, others=others)  # checks the field
    rule = rule_of(store, field)
    samples.notes.extend(region_notes(rule, others))
    return JoinedData(
        samples=samples,
        rule=rule,
        settings=data,
        store=store,
        features=features,
        columns=columns,
        grid_field=grid_field,
    )


def join_run(config: DistillConfig, source: Source, store: FeatureStore) -> JoinedData:
    """``join_data`` with the settings of a run."""
    return join_data(
        source,
        store,
        config.data,
        config.field,
        weight=config.teacher_weight,
        teachers=config.teachers,
        grid_field=config.grid_field,
    )


def _with_teacher_labels(samples: Samples, store: FeatureStore, field: str) -> Samples:
    """Give every image with a row the class of its largest stored logit."""
    check_vector(store, field, "--data.labels teacher: --field")
    width = store.manifest.fields[field].shape[0]
    names = class_names_of(store.manifest.teacher_of(field)) or list(map(str, range(width)))
    if len(names) != width:
        raise ConfigError(
            f"--data.labels teacher: field {field} of {store.address} has {width} numbers per image, its teacher "
            f"{len(names)} classes ({shorten(names)}). Name a field of logits with --field."
        )
    labels = np.full(len(samples.rows), NO_LABEL, np.int64)
    known = np.flatnonzero(samples.rows != NO_ROW)
    for part in np.array_split(known, len(known) // LABELLED_AT_ONCE + 1):
        logits = store.gather(field, samples.rows[part], views=[reference_column(store)])
        labels[part] = logits[:, 0].astype(np.float32).argmax(axis=1)
    given = len(np.unique(labels[known]))
    note = (
        f"labels are the teacher's, the largest of field {field}, of {given} of {width} classes; scores are agreement "
        "with the teacher"
    )
    return dataclasses.replace(
        samples, labels=labels, class_names=tuple(names), notes=[*samples.notes, note]
    )


def region_notes(rule: ViewRule, others: Sequence[StoredField]) -> list[str]:
    """Say which further teachers cut the canonical region otherwise than the one that the student follows."""
    notes = []
    for other in others:
        theirs = rule_of(other.store, other.field)
        if isinstance(rule, UncutRule) or isinstance(theirs, UncutRule):
            continue
        ours = (rule.size, rule.crop_pct, rule.crop_mode)
        found = (theirs.size, theirs.crop_pct, theirs.crop_mode)
        if ours != found:
            notes.append(
                f"{other.store.address}: its teacher cuts the canonical view as (size, crop_pct, crop_mode) {found}, "
                f"the first store's as {ours}; the student is shown the first store's region"
            )
    return notes


def prepare_without_store(source: Source, data: DataConfig, rule: ViewRule) -> Data:
    """Join nothing: images and the source's own labels, to measure a student without a store.

    Raises:
        ConfigError: patterns that match nothing, or no labels.
    """
    return Data(samples=join_samples(source, None, data), rule=rule, settings=data)


def few(members: Indices, most: int, seed: int) -> Indices:
    """At most ``most`` of the members, by a seed alone."""
    chosen: Indices = members[thin_out(len(members), most, seed=seed).numpy()]
    return chosen
