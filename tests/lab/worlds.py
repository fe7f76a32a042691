"""Generated plans of one daemon's life, for `histories` to play: a *world*.

It says what which client sends when, what the store does to which request, which of its addresses die, and when the
daemon is killed, reloaded or stopped. There are five kinds, by what must hold in each beside the truth:

    rough     any behaviour of the store, kills, dead addresses; from a moment on the store is honest
    shared    several clients send to each destination at once, also the same file; files change, vanish and come back;
              clients leave; operators drop and retry; the disk fails; the store gets another name: the newest content
              is there in the end, counts and records are right, nothing is sent twice without a reason
    own       some destinations are refused or spoilt for ever, the store is odd to small requests: no other destination
              is deferred, held or failed
    denied    the store refuses the keys; after a reload, or if it is over within seconds, nothing has failed for good
    dead      every address is dead: away within 10 s, few lines, few attempts; back soon

A world is made of a seed, or read from JSON: those that were wrong once are kept in `tests/property/worlds`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lab.liar import Behaviour, Body, Death, End, Keep, Tag

IN_PARTS = (5 << 20) + 1000
#: S3's codes that may fail a transfer for good, and a status that does it without one.
FINAL_CODES = ("AccessDenied", "NoSuchBucket", "InvalidRequest", "EntityTooLarge", "MethodNotAllowed")
KEYS_CODES = ("SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken")
OTHER_CODES = ("SlowDown", "InternalError", "RequestTimeout", "Strange", "NoSuchUpload", "InvalidPart")
FINAL_STATUS = 413


@dataclass(frozen=True)
class Version:
    """One content for a destination, sent when the one before was answered.

    Args:
        size: bytes.
        way: how it is sent: plain, extended, unwaited, http or form; kept: extended, over one connection for all of
            this client's.
        file: the name of a file that others send too; empty: one of its own, written for it.
        tag: of the request; a plain one has none.
        leaves_s: the client hangs up after so many seconds, if it has no answer; 0: it waits.
        then: what its owner does to the file after the request, see `THEN`; empty: nothing.
        after_s: how long after it, seconds.
    """

    size: int
    way: str = "plain"
    file: str = ""
    tag: str = ""
    leaves_s: float = 0.0
    then: str = ""
    after_s: float = 0.0


#: What a file's owner may do: write other content into it, or into another file of that name; take it away for a
#: second; remove it once it is stored.
THEN = ("rewrite", "replace", "vanish", "finish")


@dataclass(frozen=True)
class Sent:
    """What one client sends to a destination, and what the store does to that.

    Args:
        name: bucket/key; several clients may send to one.
        at: when the first version is sent, seconds.
        versions: what is sent.
        scripts: behaviours one after the other, by operation.
        constant: for ever, by operation.
        spoilt: other destinations must not suffer from it.
    """

    name: str
    at: float
    versions: tuple[Version, ...]
    scripts: dict[str, tuple[Behaviour, ...]] = field(default_factory=dict)
    constant: dict[str, Behaviour] = field(default_factory=dict)
    spoilt: bool = False

    @property
    def behaviours(self) -> Iterator[Behaviour]:
        """All of them."""
        yield from (plan for plans in self.scripts.values() for plan in plans)
        yield from self.constant.values()

    @property
    def may_fail(self) -> bool:
        """Whether the store gives a reason for it."""
        return self.name.startswith("arn:") or any(
            plan.body in FINAL_CODES or plan.status == FINAL_STATUS for plan in self.behaviours
        )


@dataclass(frozen=True)
class Event:
    """What happens beside.

    Args:
        at: when, seconds.
        what: kill, terminate, reload, retry, dead, alive, denied, granted by a reload; lifted: without one; drop:
            two pending transfers; disk: it fails for a second; renamed: the store has another name, in force after a
            reload, a kill or a stop; narrow, wide: few connections and no parts, or many and large files in parts.
        addresses: which ones die or come back; the last numbers of 127.0.0.N.
        how: they die, or a name comes into force.
    """

    at: float
    what: str
    addresses: tuple[int, ...] = ()
    how: str = Death.REFUSED

    @property
    def ends_process(self) -> bool:
        """Whether the daemon's process ends, and another one starts."""
        return bool({"kill", "terminate"} & {self.what, self.how if self.what == "renamed" else ""})


@dataclass(frozen=True)
class World:
    """The plan of one daemon's life."""

    kind: str
    addresses: int
    sent: tuple[Sent, ...]
    events: tuple[Event, ...] = ()
    constant: dict[str, Behaviour] = field(default_factory=dict)

    @property
    def histories(self) -> int:
        """How many transfers it has."""
        return sum(len(one.versions) for one in self.sent)

    def to_json(self) -> str:
        """Return it as text; what has its default is left out."""
        return json.dumps(_brief(asdict(self)), indent=1)

    @staticmethod
    def from_json(text: str) -> World:
        """Read it from text."""
        given = json.loads(text)
        sent = tuple(
            Sent(
                one["name"],
                one["at"],
                tuple(Version(**version) for version in one["versions"]),
                {name: tuple(Behaviour(**plan) for plan in plans) for name, plans in one.get("scripts", {}).items()},
                _behaviours(one.get("constant", {})),
                one.get("spoilt", False),
            )
            for one in given["sent"]
        )
        events = tuple(
            Event(**{**one, "addresses": tuple(one.get("addresses", ()))}) for one in given.get("events", ())
        )
        return World(given["kind"], given["addresses"], sent, events, _behaviours(given.get("constant", {})))


def _behaviours(given: dict[str, Any]) -> dict[str, Behaviour]:
    return {name: Behaviour(**plan) for name, plan in given.items()}


def _brief(value: Any) -> Any:
    """Return what `asdict` returned, without what has its default."""
    if isinstance(value, (list, tuple)):
        return [_brief(one) for one in value]
    if not isinstance(value, dict):
        return value
    default = asdict(Behaviour() if "take" in value else Version(0)) if "at" not in value else {"spoilt": False}
    default |= {"events": (), "scripts": {}, "constant": {}}
    return {name: _brief(one) for name, one in value.items() if name not in default or one != default[name]}


def behaviour(rng: random.Random) -> Behaviour:
    """Return any behaviour that a store can have."""
    codes = (*FINAL_CODES, *KEYS_CODES, *OTHER_CODES)
    return Behaviour(
        take=rng.choice((1.0, 1.0, 1.0, 1.0, 0.5, 0.0)),
        keep=rng.choice((Keep.NOTHING, Keep.NOTHING, Keep.FLIPPED, Keep.WHOLE, Keep.WHOLE)),
        status=rng.choice((200, 200, 200, 200, 201, 204, 206, 302, 400, 403, 404, 408, 413, 429, 500, 502, 503, 504)),
        tag=rng.choice((*Tag, Tag.TRUE, Tag.TRUE, Tag.NONE)),
        body=rng.choice((Body.OWN, Body.OWN, Body.OWN, Body.NONE, Body.HTML, Body.GARBAGE, rng.choice(codes))),
        gzip=rng.random() < 0.15,
        end=rng.choice((*[End.ANSWER] * 8, End.ANSWER_AND_CLOSE, End.CLOSE, End.RESET, End.HALF, End.SILENCE))
        if rng.random() > 0.003
        else End.ENDLESS,
        twice=rng.random() < 0.1,
    ).possible()


def few(rng: random.Random, least: int, most: int) -> tuple[Behaviour, ...]:
    """Return some behaviours."""
    return tuple(behaviour(rng) for _ in range(rng.randint(least, most)))


def versions(rng: random.Random) -> tuple[Version, ...]:
    """Return what is sent to one destination."""
    ways = ("plain", "plain", "extended", "unwaited", "http")
    count = rng.choice((1, 1, 1, 2, 3))
    return tuple(Version(rng.choice((1, 3_000, 3_000, 200_000)), rng.choice(ways)) for _ in range(count))


def rough(rng: random.Random, count: int) -> World:
    """Return a world of any behaviours."""
    addresses = rng.choice((1, 1, 2, 4))
    sent = list[Sent]()
    for number in range(count):
        made = Sent(f"bucket/{number}", round(rng.uniform(0, 3), 2), versions(rng))
        dice = rng.random()
        if dice < 0.03:
            operations = {"create": 1, "part": 2, "complete": 2, "list": 1, "head": 1}
            scripts = {name: few(rng, 0, most) for name, most in operations.items()}
            # A completion may take ten minutes, so silence would: it takes longer than a world.
            scripts["complete"] = tuple(
                replace(plan, end=End.CLOSE) if plan.end == End.SILENCE else plan for plan in scripts["complete"]
            )
            made = replace(made, versions=(Version(IN_PARTS, "extended"),), scripts=scripts)
        elif dice < 0.6:
            made = replace(made, scripts={"put": few(rng, 1, 3), "head": few(rng, 0, 2)})
        sent.append(made)
    events = list[Event]()
    for _ in range(rng.choice((0, 1, 1, 2))):
        events.append(
            Event(round(rng.uniform(0.5, 4), 2), rng.choice(("kill", "kill", "terminate", "reload", "retry")))
        )
    if rng.random() < 0.4:
        dead = tuple(rng.sample(range(1, addresses + 1), rng.randint(1, addresses)))
        at = round(rng.uniform(0.5, 3), 2)
        events += [
            Event(at, "dead", dead, str(rng.choice(list(Death)))),
            Event(round(at + rng.uniform(0.5, 2), 2), "alive"),
        ]
    return World("rough", addresses, tuple(sent), tuple(sorted(events, key=lambda event: event.at)))


def refusal(status: int, code: str) -> Behaviour:
    """Return the refusal of a request by S3."""
    return Behaviour(keep=Keep.NOTHING, tag=Tag.NONE, status=status, body=code)


#: What a store may do to one destination for ever, whoever is to blame.
SPOILT: dict[str, Behaviour] = {
    "SignatureDoesNotMatch": refusal(403, "SignatureDoesNotMatch"),
    "AccessDenied": refusal(403, "AccessDenied"),
    "QuotaExceeded": refusal(403, "QuotaExceeded"),
    "NoSuchBucket": refusal(404, "NoSuchBucket"),
    "InvalidRequest": refusal(400, "InvalidRequest"),
    "Strange": refusal(400, "Strange"),
    "503": refusal(503, "SlowDown"),
    "200 without an ETag": Behaviour(keep=Keep.NOTHING, tag=Tag.NONE),
    "200 with HTML": Behaviour(keep=Keep.NOTHING, tag=Tag.NONE, body=Body.HTML),
    "201": Behaviour(keep=Keep.NOTHING, tag=Tag.NONE, status=201),
    "another ETag": Behaviour(tag=Tag.WRONG),
    "reset": Behaviour(keep=Keep.NOTHING, tag=Tag.NONE, end=End.RESET),
    "no answer": Behaviour(keep=Keep.NOTHING, tag=Tag.NONE, end=End.SILENCE),
    "arn": Behaviour(),
}
#: What it may answer to small requests while it serves all others.
ODD: dict[str, Behaviour] = {
    "503": Behaviour(keep=Keep.NOTHING, status=503, body=Body.NONE),
    "404 with a large page": Behaviour(keep=Keep.NOTHING, status=404, body=Body.LARGE),
    "a long header": Behaviour(header_bytes=9_000),
    "403": refusal(403, "AccessDenied"),
    "closes": Behaviour(end=End.CLOSE),
}


def own(rng: random.Random, count: int) -> World:
    """Return a world in which some destinations are spoilt, each for itself, and others are not.

    A refusal that accuses the keys, of two destinations, may hold the queue where the store does not take the small
    request that would tell; so there is one. A hold for a denial, though, the next success ends.
    """
    odd = rng.choice((None, None, *ODD))
    kinds = rng.sample(list(SPOILT), rng.randint(1, 5))
    accusing = [kind for kind in kinds if kind in ("SignatureDoesNotMatch", "AccessDenied")]
    kinds = [kind for kind in kinds if not odd or kind not in accusing[1:]]
    spoilt = list[Sent]()
    for kind in kinds:
        more = 1 if kind in accusing and odd else rng.randint(1, 4)
        for number in range(more):
            bucket = "arn:x" if kind == "arn" else f"spoilt-{len(spoilt)}"
            name = f"{bucket}/{number}{'//' if kind == 'SignatureDoesNotMatch' else '-'}{kind.replace(' ', '-')}"
            plan = {} if kind == "arn" else {"put": SPOILT[kind]}
            at = round(rng.uniform(0, 2), 2)
            spoilt.append(Sent(name, at, (Version(3_000, "unwaited"),), constant=plan, spoilt=True))
    good = [
        Sent(f"bucket/{n}", round(rng.uniform(0, 5), 2), (Version(3_000, rng.choice(("plain", "http"))),))
        for n in range(count)
    ]
    constant = {"small": ODD[odd], "neutral": ODD[odd]} if odd else {}
    return World("own", rng.choice((1, 2, 4)), (*spoilt, *good), constant=constant)


def denied(rng: random.Random, count: int) -> World:
    """Return a world in which the store refuses the keys for a while.

    If that is a denial it may be over by itself; and keys that were accepted before may be denied the small request.
    """
    code = rng.choice((*KEYS_CODES, "AccessDenied", "AccessDenied"))
    rotated_at = rng.choice((0.0, 1.5))
    sent = [
        Sent(f"bucket/{n}", round(rng.uniform(0, 3), 2), (Version(3_000, rng.choice(("plain", "unwaited"))),))
        for n in range(count)
    ]
    granted, constant = Event(4.0, "granted"), dict[str, Behaviour]()
    if code == "AccessDenied" and rng.random() < 0.7:
        granted = Event(round(rotated_at + rng.uniform(0.1, 4), 2), "lifted")
        if rotated_at and rng.random() < 0.5:
            constant = {"neutral": refusal(403, code)}
    events = (Event(rotated_at, "denied", how=code), granted)
    return World("denied", rng.choice((1, 2)), tuple(sent), events, constant)


def dead(rng: random.Random, _: int) -> World:
    """Return a world without a store."""
    addresses = rng.choice((1, 2, 2, 4))
    how = rng.choice(list(Death))
    sent = [
        Sent(f"bucket/{n}", 0.2 * n, (Version(3_000, rng.choice(("plain", "unwaited"))),))
        for n in range(rng.randint(1, 5))
    ]
    return World("dead", addresses, tuple(sent), (Event(0.0, "dead", tuple(range(1, addresses + 1)), str(how)),))


def shared(rng: random.Random, count: int) -> World:
    """Return a world in which several clients send to each destination.

    No store damages what it keeps: after a crash, nothing tells that of a file that has changed since. And no process
    ends after its disk has failed: it could not leave to the next one what it has sent.
    """
    sent = list[Sent]()
    places, most = rng.choice(((count // 3, 4), (count // 12, 16)))
    for number in range(places):
        name, plans = f"bucket/{number}", few(rng, 1, 3) if rng.random() < 0.4 else ()
        plans = tuple(plan for plan in plans if plan.keep != Keep.FLIPPED)
        if rng.random() < 0.8:
            plans = tuple(plan for plan in plans if plan.body not in FINAL_CODES and plan.status != FINAL_STATUS)
        scripts = {"put": plans, "head": few(rng, 0, 2)} if plans else {}
        constant = {"put": Behaviour(waits_s=rng.choice((0.05, 0.2, 0.5)))}
        for _ in range(rng.randint(1, most)):
            several = tuple(_shared_version(rng, number) for _ in range(rng.choice((1, 1, 2, 3))))
            sent.append(Sent(name, round(rng.uniform(0, 3), 2), several, scripts, constant))
            scripts = {}
    events = [
        Event(round(rng.uniform(0.3, 4.5), 2), what, how=rng.choice(("reload", "kill", "terminate")))
        for what in rng.choices(
            ("kill", "kill", "terminate", "reload", "retry", "drop", "disk", "renamed", "narrow", "wide"),
            k=rng.randint(0, 5),
        )
    ]
    events.sort(key=lambda event: event.at)
    fails_at = min((event.at for event in events if event.what == "disk"), default=math.inf)
    events = [event for event in events if event.at <= fails_at or not event.ends_process]
    return World("shared", rng.choice((1, 2)), tuple(sent), tuple(events))


def _shared_version(rng: random.Random, number: int) -> Version:
    way = rng.choice(("plain", "extended", "kept", "kept", "unwaited", "http", "form"))
    file = rng.choice(("", "", f"of-{number}", f"of-{number % 7}"))
    then = rng.choice(("", "", *(THEN[:3] if file else THEN)))
    return Version(
        IN_PARTS if not file and rng.random() < 0.05 else 3_000,
        way,
        file,
        "" if way == "plain" else f"tag-{rng.randrange(40)}",
        round(rng.uniform(0.01, 2), 2) if rng.random() < 0.15 else 0.0,
        then,
        round(rng.choice((0.02, 0.2, 2.0)) * rng.random(), 3) if then else 0.0,
    )


KINDS: dict[str, Callable[[random.Random, int], World]] = {
    "rough": rough, "shared": shared, "own": own, "denied": denied, "dead": dead,
}  # fmt: skip
_SHARES = {"rough": 10, "shared": 4, "own": 4, "denied": 1, "dead": 1}


def world_of(seed: int, kind: str = "", count: int = 120) -> World:
    """Return the world of a seed.

    Args:
        seed: of everything.
        kind: of world; any when empty.
        count: how many destinations a rough one has; the others have fewer.
    """
    rng = random.Random(seed)
    chosen = kind or rng.choices(list(_SHARES), list(_SHARES.values()))[0]
    return KINDS[chosen](rng, count if chosen in ("rough", "shared") else min(count, 40))
