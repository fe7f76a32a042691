"""Frozen dataclasses to JSON objects and back: the shape of every answer on the control socket is a type.

A member's key is the field's name, or that of a `Key` in its annotation. Members of a later version are ignored; one
that is missing or of another type is an error, so that no reader has to check again.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

from s3daemon.errors import Code, S3daemonError

_ABSENT = object()


class Key(NamedTuple):
    """In `Annotated[X, Key(name)]`: the key of a field in JSON, where that is not the field's name."""

    name: str


class JsonObject:
    """Base of frozen dataclasses that travel as JSON objects.

    Their fields are of the types `str`, `int`, `float`, `bool`, one of these or None, another such dataclass, or
    `tuple[X, ...]` of one of all these.
    """

    __slots__ = ()

    def as_dict(self) -> dict[str, object]:
        """The members, for JSON."""
        shape = _shape(type(self))
        members: dict[str, object] = dict(zip(shape.keys, shape.values(self), strict=True))
        for key in shape.nested:
            members[key] = _plain(members[key])
        return members

    @classmethod
    def from_dict(cls, members: object) -> Self:
        """Read back what `as_dict` gave.

        Raises:
            S3daemonError: `NoAnswer`, a member is missing or of another type.
        """
        shape = _shape(cls)
        values = [members.get(key, _ABSENT) for key in shape.keys] if isinstance(members, dict) else [_ABSENT]
        if not all(map(isinstance, values, shape.types)):
            raise S3daemonError(Code.NO_ANSWER, "the daemon's answer is of another version: restart the service")
        for at, key in enumerate(shape.keys):
            if key in shape.nested:
                values[at] = _read(values[at], shape.nested[key])
        return cls(**dict(zip(shape.names, values, strict=True)))


class _Shape:
    """The fields of one class: keys, JSON's types, and what its arrays and objects hold."""

    def __init__(self, cls: type[JsonObject]) -> None:
        # Its own fields before those of a base: JSON is read by people too.
        hints = dict(sorted(get_type_hints(cls).items(), key=lambda item: item[0] not in cls.__annotations__))
        full = get_type_hints(cls, include_extras=True)
        self.names = list(hints)
        self.keys = [_key(name, full[name]) for name in hints]
        self.types = [_types(hint) for hint in hints.values()]
        self.values = attrgetter(*hints)
        inner = zip(self.keys, map(_inner, hints.values()), strict=True)
        self.nested = {key: hint for key, hint in inner if hint is not None}


_shapes: dict[type[JsonObject], _Shape] = {}


def _shape(cls: type[JsonObject]) -> _Shape:
    shape = _shapes.get(cls)
    if shape is None:
        shape = _shapes[cls] = _Shape(cls)
    return shape


def _key(name: str, hint: Any) -> str:
    return next((extra.name for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Key)), name)


def _types(hint: Any) -> tuple[type, ...]:
    """The types of JSON's that a value of this annotation has."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(kind for one in get_args(hint) for kind in _types(one))
    if get_origin(hint) is tuple:
        return (list,)
    if issubclass(hint, JsonObject):
        return (dict,)
    return (int, float) if hint is float else (hint,)


def _inner(hint: Any) -> Any:
    """The annotation of what an array holds, or the class of an object; None for a plain value."""
    if get_origin(hint) is tuple:
        return get_args(hint)[0]
    return hint if isinstance(hint, type) and issubclass(hint, JsonObject) else None


def _read(value: Any, inner: Any) -> Any:
    if isinstance(value, list):
        return tuple(_read_item(item, inner) for item in value)
    return inner.from_dict(value)


def _read_item(item: Any, inner: Any) -> Any:
    if issubclass(inner, JsonObject):
        return inner.from_dict(item)
    if not isinstance(item, _types(inner)):
        raise S3daemonError(Code.NO_ANSWER, "the daemon's answer is of another version: restart the service")
    return item


def _plain(value: object) -> object:
    if isinstance(value, JsonObject):
        return value.as_dict()
    return [_plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
