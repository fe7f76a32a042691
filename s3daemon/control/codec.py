"""Frozen dataclasses to JSON objects and back: the shape of every answer on the control socket is a type.

A member's key is the field's name, or that of a `Key` in its annotation. Members of a later version are ignored; one
that is missing is an error.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self, get_args, get_origin, get_type_hints

from s3daemon.errors import Code, S3daemonError


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
        return {key: _plain(getattr(self, name)) for name, key, _ in _members(type(self))}

    @classmethod
    def from_dict(cls, members: Any) -> Self:
        """Read back what `as_dict` gave.

        Raises:
            S3daemonError: `NoAnswer`, a member is missing.
        """
        try:
            return cls(**{name: _read(members[key], inner) for name, key, inner in _members(cls)})
        except (LookupError, TypeError) as exc:
            text = "the daemon's answer is of another version: restart the service"
            raise S3daemonError(Code.NO_ANSWER, text) from exc


_known: dict[type[JsonObject], list[tuple[str, str, type[JsonObject] | None]]] = {}


def _members(cls: type[JsonObject]) -> list[tuple[str, str, type[JsonObject] | None]]:
    """Return the name, the key in JSON, and the class of objects in it, of each field."""
    if cls not in _known:
        hints = get_type_hints(cls, include_extras=True)
        # Its own fields before those of a base: JSON is read by people too.
        names = sorted(hints, key=lambda name: name not in cls.__annotations__)
        _known[cls] = [(name, _key(name, hints[name]), _inner(hints[name])) for name in names]
    return _known[cls]


def _key(name: str, hint: Any) -> str:
    return next((extra.name for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Key)), name)


def _inner(hint: Any) -> type[JsonObject] | None:
    kind = get_args(hint)[0] if get_origin(hint) is tuple else hint
    return kind if isinstance(kind, type) and issubclass(kind, JsonObject) else None


def _read(value: Any, inner: type[JsonObject] | None) -> Any:
    if isinstance(value, list):
        return tuple(_read(item, inner) for item in value)
    return value if inner is None else inner.from_dict(value)


def _plain(value: object) -> object:
    if isinstance(value, JsonObject):
        return value.as_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
