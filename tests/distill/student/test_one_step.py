"""One-step generators: the router, students apart from each other, graphs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.config import StudentConfig
from distill.student.model import build_student
from distill.student.one_step import OneStep, UNet, route_of
from featstore.errors import ConfigError

TWO: list[dict[str, Any]] = [{"where": [0, "2-3"]}, {"where": [1]}]


def conditions(classes: list[int]) -> Tensor:
    """(B, 3, 8, 8) noise of these classes, normalised."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(len(classes), 3, 8, 8, generator=generator)
    images[:, 1] = torch.tensor(classes)[:, None, None]
    images[:, 2] = 0
    return images


def test_route_by_hand() -> None:
    """Numbers and ranges."""
    assert route_of(TWO, 4) == [0, 1, 0, 0]
    assert route_of([{"where": ["0-2"]}], 3) == [0, 0, 0]


@pytest.mark.parametrize(
    ("students", "named"),
    [
        ([{"where": [0, 1]}, {"where": [1, 2]}], "class 1 of 3 also has student 0"),
        ([{"where": [0]}, {"where": [1]}], r"\[2\] of 3"),
        ([{"where": ["0-3"]}], "class 3 of 3"),
        ([{"where": []}, {"where": ["0-2"]}], "student 0"),
        ([{"which": [0]}], "which"),
        ([{"where": ["a"]}], "'a'"),
    ],
)
def test_partitions_that_do_not_cover_or_overlap(students: Any, named: str) -> None:
    """Refused with the class or the entry, when the student is built."""
    with pytest.raises(ConfigError, match=named):
        build_student(
            StudentConfig(
                name="one_step",
                model_args={"classes": 3, "size": 8, "width": 4, "students": students},
            ),
            0,
        )


def test_students_partition_the_rows() -> None:
    """Every row comes from the student of its class alone; changing one student leaves the others' rows as they are."""
    torch.manual_seed(0)
    model = OneStep(classes=4, size=8, width=4, students=TWO).eval()
    classes = [3, 1, 0, 1, 2]
    images = conditions(classes)
    found = model(images)
    for row, number in enumerate([0, 1, 0, 1, 0]):
        own = model.students[number](images[row : row + 1, :1], None, torch.tensor([classes[row]]))
        torch.testing.assert_close(found[row], own.flatten())
    changed = copy.deepcopy(model)
    for value in changed.students[1].parameters():
        value.data.add_(0.1)
    same = (changed(images) == found).all(1)
    assert same.tolist() == [True, False, True, False, True]
    torch.testing.assert_close(
        model._selected(images[:, :1], torch.tensor(classes)).flatten(1), found
    )


def test_gradients_stay_with_the_student_of_the_class() -> None:
    """A student without rows gets zeros, so that distributed training sees every parameter."""
    model = OneStep(classes=4, size=8, width=4, students=TWO)
    model(conditions([0, 3])).square().sum().backward()
    norms = [
        sum(float(value.grad.norm()) for value in student.parameters() if value.grad is not None)
        for student in model.students
    ]
    assert all(value.grad is not None for value in model.parameters())
    assert norms[0] > 0
    assert norms[1] == 0


def test_one_student_of_all_classes_is_a_plain_network() -> None:
    """No router: same as one student with all classes; its width is that of the picture."""
    torch.manual_seed(0)
    model = OneStep(classes=4, size=8, width=4)
    torch.manual_seed(0)
    assert isinstance(model.students[0], UNet)
    images = conditions([2, 0])
    plain = model.students[0](images[:, :1], None, torch.tensor([2, 0]))
    torch.testing.assert_close(model(images), plain.flatten(1))
    student = build_student(
        StudentConfig(name="one_step", model_args={"classes": 4, "size": 8, "width": 4}), 0
    )
    assert (student.width, student.input_size, student.num_classes) == (64, (8, 8), 0)


def test_a_traced_router_answers_alike() -> None:
    """torch.export has no rows of its own number; every student runs on all."""
    torch.manual_seed(0)
    model = OneStep(classes=4, size=8, width=4, students=TWO).eval()
    program = torch.export.export(model, (conditions([0, 1, 2]),))
    images = conditions([1, 3, 1])
    torch.testing.assert_close(program.module()(images), model(images))


def test_sizes_and_classifiers_are_refused() -> None:
    """Sides divide by 4; there are no classes to predict."""
    with pytest.raises(ValueError, match="10"):
        OneStep(classes=2, size=10)
    with pytest.raises(ValueError, match="classifier"):
        OneStep(classes=2, size=8, num_classes=3)
