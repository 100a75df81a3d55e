"""How a sample becomes a student's input: the region of an image that is shown, or how a point cloud is prepared."""

from typing import Any

from featstore import FeatureStore
from featstore.errors import ConfigError, ViewMismatch
from featstore.format.manifest_records import PointRecord, TextRecord
from featstore.format.views import ViewSet
from featstore.sources.load import ViewRule

TEXT, POINTS = "text", "points"


class UncutRule(ViewRule):
    """Takes the place of another rule where samples are no images: nothing is cut."""

    def __init__(self) -> None:
        super().__init__(ViewSet(), (1, 1), 1.0, "center", "bicubic")


class TextRule(UncutRule):
    """Rule of texts."""

    def describe(self) -> dict[str, Any]:
        """As JSON values, for the file beside an exported student."""
        return {"view": TEXT}


class PointRule(UncutRule):
    """How a cloud becomes a student's input: as it became the teacher's."""

    def __init__(self, record: PointRecord) -> None:
        super().__init__()
        self.record = record

    def describe(self) -> dict[str, Any]:
        """As JSON values, for the file beside an exported student."""
        return {"view": POINTS, **self.record.model_dump(mode="json")}

    @classmethod
    def from_description(cls, values: dict[str, Any]) -> "PointRule":
        """The inverse of ``describe``."""
        return cls(PointRecord(**{name: item for name, item in values.items() if name != "view"}))

    def check(self, record: PointRecord, student: str) -> None:
        """Compare with what a student takes. Raises ConfigError: names what differs."""
        ours, theirs = self.record.model_dump(), record.model_dump()
        different = [
            f"{name} {theirs[name]}, the teacher {ours[name]}"
            for name in ours
            if ours[name] != theirs[name]
        ]
        if different:
            raise ConfigError(
                f"--student.name {student}: its input has {'; '.join(different)}. Give it the teacher's: "
                f"--student.model_args '{{{', '.join(name.split()[0] + ': ...' for name in different)}}}'."
            )


def rule_from_description(values: dict[str, Any]) -> ViewRule:
    """The inverse of ``describe`` of any rule."""
    if values["view"] == POINTS:
        return PointRule.from_description(values)
    return TextRule() if values["view"] == TEXT else ViewRule.from_description(values)


def rule_of(store: FeatureStore, field: str) -> ViewRule:
    """Which region of an image the teacher of a field was shown; of other samples, how they become its input.

    Raises:
        ManifestMismatch: no teacher made the field.
        ViewMismatch: its teacher saw no images.
    """
    record = store.manifest.teacher_of(field).preprocessing
    if isinstance(record, TextRecord):
        return TextRule()
    if isinstance(record, PointRecord):
        return PointRule(record)
    if record is None:
        raise ViewMismatch(
            f'{store.address}: field "{field}" has no preprocessing, so it is not known which region of an image '
            "the teacher saw. If it was made from images, create or import the store again with its input size "
            "(featstore import --size)."
        )
    return ViewRule.of_teacher(store.manifest.views, record)
