"""What a policy will cost, before a rollout starts: rehearsed in small pieces for whoever looks, and kept in Redis.

A piece is a few runs of one kind of candidate, drawn from a seed of its own: whoever makes it finds the same. Each look
makes pieces for a moment and answers with what is known by then, so that no request computes for long. What Redis
forgets is made again.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

from redis import Redis

from penstock.places import Places
from penstock.rollouts.policy import Policy
from penstock.rollouts.rehearsal import HARMLESS, Effect, rehearse
from penstock.rollouts.simulation import quantile
from penstock.rollouts.verdicts import Verdict

CHAMPION_FAILS: Final = 0.01
MOST_JOBS: Final = 20_000
PIECES: Final = 20
_RUNS: Final = 5
_SECONDS_A_LOOK: Final = 0.1
_KEPT_SECONDS: Final = 30 * 86400


@dataclass(frozen=True, slots=True)
class Kind:
    """A candidate that is rehearsed: its name, what it is like, and in words after "a version that"."""

    name: str
    effect: Effect
    words: str


_KINDS: Final = (
    Kind("harmless", HARMLESS, "is as good"),
    Kind("errors3", Effect(errors=3.0), "fails 3 times as often"),
    Kind("errors10", Effect(errors=10.0), "fails 10 times as often"),
    Kind("latency", Effect(latency=1.5), "takes 1.5 times as long"),
    Kind("divergence", Effect(mean_kld=0.5), "diverges by 0.5 nats"),
)


class End(NamedTuple):
    """How a run ended: after how many jobs, and how many of them the candidate had served."""

    verdict: Verdict
    jobs: int
    served: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """All runs of one kind of candidate, as far as they were made."""

    kind: Kind
    ends: tuple[End, ...]

    def rate(self, verdict: Verdict) -> float:
        """Part of the runs that ended so; 0 while there are none."""
        return sum(end.verdict is verdict for end in self.ends) / len(self.ends) if self.ends else 0.0

    @property
    def usual(self) -> Verdict:
        """How most of them ended."""
        return max(Verdict, key=self.rate)

    def jobs(self, level: float) -> int:
        """Within so many jobs that part of the runs with the usual end had it."""
        return round(quantile([end.jobs for end in self._usual], level))

    def served(self, level: float) -> int:
        """The same of jobs that the candidate served."""
        return round(quantile([end.served for end in self._usual], level))

    @property
    def _usual(self) -> list[End]:
        return [end for end in self.ends if end.verdict is self.usual]


@dataclass(frozen=True, slots=True)
class Cost:
    """What is known of a policy's cost. `done` of 1 is all."""

    policy_version: str
    outcomes: tuple[Outcome, ...]
    done: float


def look(policy: Policy, redis: Redis, places: Places) -> Cost:
    """What is known now. Makes pieces for a tenth of a second, unless somebody else is at it in this process."""
    key = f"penstock:rehearsed:{policy.version}"
    fields = [(kind, piece) for piece in range(PIECES) for kind in _kinds(policy)]
    stored = cast(dict[bytes, bytes], redis.hgetall(key))
    kept = {name.decode(): _read(text) for name, text in stored.items()}
    missing = [each for each in fields if _field(*each) not in kept]
    leave = places.take() if missing else None
    if leave is not None:
        try:
            made = dict(_make(policy, missing))
        finally:
            leave()
        redis.hset(key, mapping={name: json.dumps(ends) for name, ends in made.items()})
        redis.expire(key, _KEPT_SECONDS)
        kept |= made
    outcomes = tuple(
        Outcome(kind, tuple(end for piece in range(PIECES) for end in kept.get(_field(kind, piece), ())))
        for kind in _kinds(policy)
    )
    return Cost(policy.version, outcomes, sum(_field(*each) in kept for each in fields) / len(fields))


def _kinds(policy: Policy) -> list[Kind]:
    """Those that the policy could find out."""
    without = {"latency": policy.latency is None, "divergence": policy.shadow is None}
    return [kind for kind in _KINDS if not without.get(kind.name)]


def _make(policy: Policy, missing: Sequence[tuple[Kind, int]]) -> Iterator[tuple[str, tuple[End, ...]]]:
    """At least one of them, and as many as the time allows."""
    until = time.monotonic() + _SECONDS_A_LOOK
    for kind, piece in missing:
        found = rehearse(policy, kind.effect, error_rate=CHAMPION_FAILS, limit=MOST_JOBS, runs=_RUNS, seed=piece)
        yield _field(kind, piece), tuple(End(run[-1].verdict, run[-1].jobs, run[-1].exposed) for run in found.runs)
        if time.monotonic() >= until:
            return


def _field(kind: Kind, piece: int) -> str:
    return f"{kind.name}:{piece}"


def _read(text: bytes) -> tuple[End, ...]:
    return tuple(End(Verdict(verdict), jobs, served) for verdict, jobs, served in json.loads(text))
