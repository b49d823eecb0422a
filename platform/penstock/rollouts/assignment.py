"""Which arm of a rollout a unit is on: a hash, so that it is the same wherever and whenever it is asked for."""

import hashlib
from enum import StrEnum
from typing import Final

_BITS: Final = 53  # as many as a float holds exactly


class Arm(StrEnum):
    """Who serves: the version that is live, or the one that is tried."""

    CHAMPION = "champion"
    CANDIDATE = "candidate"


class Unit(StrEnum):
    """What is assigned as one: each job, or all jobs of a user, or of a tenant."""

    JOB = "job"
    USER = "user"
    TENANT = "tenant"

    @property
    def sticky(self) -> bool:
        """Whether it has several jobs, all on one arm; statistics then count it once."""
        return self is not Unit.JOB


def assign(seed: str, unit: Unit, key: str, share: float) -> Arm:
    """The arm of the unit `key`, which is an id of its kind, when the candidate has `share` of them.

    `seed` is the rollout's own, which makes rollouts independent of each other. Raising the share moves units to the
    candidate and none away from it. Raises `ValueError` for a share that is none.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must lie between 0 and 1")
    return Arm.CANDIDATE if place(seed, unit, key) < share else Arm.CHAMPION


def place(seed: str, unit: Unit, key: str) -> float:
    """Where the unit lies in [0, 1), uniformly: the candidate has those below its share."""
    # Lengths first: no two triples may read as one text.
    text = "".join(f"{len(part)}:{part}" for part in (seed, unit.value, key))
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"penstock rollout").digest()
    return float(int.from_bytes(digest) >> (64 - _BITS)) / float(1 << _BITS)
