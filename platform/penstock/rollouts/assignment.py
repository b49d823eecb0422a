"""Which arm of a rollout a unit is on: a hash, so that it is the same wherever and whenever it is asked for."""

import hashlib
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

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


@dataclass(frozen=True, slots=True)
class Who:
    """Whose job it is. `user` is whom the tenant names as the one who asked, `api_key_id` with which key it came."""

    job_id: str
    tenant_id: str
    user: str | None = None
    api_key_id: str | None = None

    def key(self, unit: Unit, seed: str) -> str | None:
        """The digest that stands for the job's unit in one rollout; none where that is the job itself.

        A user belongs to a tenant: equal names of two tenants are two users. A job that names none is its key's, and
        without one (the portal's) its tenant's.
        """
        if unit is Unit.JOB:
            return None
        named = ("user", self.user) if self.user else ("key", self.api_key_id) if self.api_key_id else ("all", "")
        parts = (self.tenant_id, *(named if unit is Unit.USER else ()))
        return hashlib.blake2b(_spelled(*parts).encode(), key=seed.encode()[:64], digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Assigned:
    """A job's assignment, as its row begins: see `penstock.rollouts.models.Assignment`."""

    job_id: str
    rollout_id: str
    stage: str
    step: int
    arm: Arm
    share: float
    unit: Unit
    key: str | None

    @property
    def row(self) -> dict[str, Any]:
        """Its columns."""
        return asdict(self)


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
    text = _spelled(seed, unit.value, key)
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"penstock rollout").digest()
    return float(int.from_bytes(digest) >> (64 - _BITS)) / float(1 << _BITS)


def _spelled(*parts: str) -> str:
    """Lengths first: no two sequences may read as one text."""
    return "".join(f"{len(part)}:{part}" for part in parts)
