"""Answers as types: what is sent comes back the same, and what lacks a member is another version's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from s3daemon.control.codec import JsonObject, Key
from s3daemon.errors import S3daemonError


@dataclass(frozen=True, slots=True)
class Item(JsonObject):
    name: str
    shown_as: Annotated[int, Key("other")]


@dataclass(frozen=True, slots=True)
class Whole(JsonObject):
    ratio: float
    limit: float | None
    first: Item
    items: tuple[Item, ...]
    words: tuple[str, ...]


WHOLE = Whole(1.5, None, Item("a", 1), (Item("b", 2), Item("c", 3)), ("x", "\udcff"))
MEMBERS = {
    "ratio": 1.5,
    "limit": None,
    "first": {"name": "a", "other": 1},
    "items": [{"name": "b", "other": 2}, {"name": "c", "other": 3}],
    "words": ["x", "\udcff"],
}


def test_members_have_the_names_and_order_of_the_fields() -> None:
    assert WHOLE.as_dict() == MEMBERS
    assert list(WHOLE.as_dict()) == list(MEMBERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Longer(Item):
    size: int


def test_members_of_a_base_come_last() -> None:
    longer = Longer(name="a", shown_as=1, size=2)
    assert list(longer.as_dict().items()) == [("size", 2), ("name", "a"), ("other", 1)]
    assert Longer.from_dict(longer.as_dict()) == longer


def test_through_json_and_back() -> None:
    assert Whole.from_dict(json.loads(json.dumps(WHOLE.as_dict()))) == WHOLE


def test_members_of_a_later_version_are_ignored() -> None:
    assert Whole.from_dict({**MEMBERS, "later": 1, "first": {"name": "a", "other": 1, "later": 2}}) == WHOLE


@pytest.mark.parametrize(
    "changes",
    [
        {"first": None},
        {"first": {"name": "a"}},
        {"items": {}},
        {"items": [{"name": 1}]},
        {"items": [None]},
    ],
)
def test_an_object_that_lacks_a_member_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(S3daemonError, match="of another version"):
        Whole.from_dict({**MEMBERS, **changes})


@pytest.mark.parametrize("members", [None, [], "x", {}])
def test_an_answer_that_is_not_an_object_is_an_error(members: object) -> None:
    with pytest.raises(S3daemonError, match="of another version"):
        Whole.from_dict(members)
