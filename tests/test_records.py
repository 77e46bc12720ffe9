"""Records behave as the dataclasses do whose place they take."""

from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from typing import ClassVar

import pytest

from fusecli.records import open_record, record


@record
class Point:
    kind: ClassVar[str] = "point"
    x: int
    y: int = 2
    marks: list[str] = field(default_factory=list, compare=False, repr=False)


@record
class Place(Point):
    name: str = "here"

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x")


@open_record
class Open:
    x: int
    y: int = 2


@record
class Many(Place):
    """Of which so many were made that it has an `__init__` of its own."""

    name: str = "there"
    values: dict[str, int] = field(default_factory=dict)


for _ in range(100):
    Many(1)


@dataclass(frozen=True)
class Plain:
    x: int
    y: int = 2


def test_values_come_by_place_by_name_and_by_default() -> None:
    assert vars(Point(1)) == {"x": 1, "y": 2, "marks": []}
    assert vars(Point(1, 3, ["a"])) == vars(Point(marks=["a"], y=3, x=1))
    assert Point(1).marks is not Point(1).marks
    assert vars(Place(1, name="there")) == {"x": 1, "y": 2, "marks": [], "name": "there"}


def test_a_class_of_many_instances_has_a_function_of_its_own_that_does_the_same() -> None:
    assert Many.__init__ is not Place.__init__
    assert Place.__init__ is Point.__init__
    kept = {"x": 1, "y": 2, "marks": [], "name": "there", "values": {}}
    assert vars(Many(1)) == kept
    assert vars(Many(1, 2, [], "there", {})) == vars(Many(values={}, y=2, x=1)) == kept
    assert Many(1).marks is not Many(1).marks
    with pytest.raises(ValueError, match="x"):
        Many(-1)


@pytest.mark.parametrize("kind", [Point, Place, Many, Open, Plain])
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ((), {}),  # x is missing
        ((), {"y": 1}),
        ((1,), {"z": 1}),
        ((), {"y": 1, "z": 1}),  # as many as there are fields, and one of them unknown
        ((1,), {"x": 1}),
        ((1, 2), {"y": 2}),
        ((1, 2, 3, 4, 5, 6), {}),
    ],
)
def test_what_does_not_fit_is_a_type_error(
    kind: type, given: tuple[int, ...], named: dict[str, int]
) -> None:
    with pytest.raises(TypeError):
        kind(*given, **named)


def test_a_record_is_frozen_and_an_open_one_is_not() -> None:
    point = Point(1)
    with pytest.raises(FrozenInstanceError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del point.x  # type: ignore[misc]
    item = Open(1)
    item.x = 5
    assert item == Open(5) != Open(6)


def test_records_are_compared_hashed_printed_and_copied_as_dataclasses_are() -> None:
    assert Point(1, marks=["a"]) == Point(1) != Place(1)
    assert hash(Point(1)) == hash(Point(1, marks=["a"]))
    assert repr(Point(1)) == "Point(x=1, y=2)"
    assert repr(Open(1)) == "Open(x=1, y=2)"
    with pytest.raises(TypeError):
        hash(Open(1))
    assert replace(Point(1), y=7) == Point(1, 7)
    assert asdict(Point(1)) == {"x": 1, "y": 2, "marks": []}
    assert [item.name for item in fields(Place)] == ["x", "y", "marks", "name"]


def test_a_check_behind_the_values_is_run() -> None:
    with pytest.raises(ValueError, match="x"):
        Place(-1)
