"""Which version a model's jobs go to while its alias moves: a pure decision, one model at a time."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Readiness(StrEnum):
    """How a deployment stands over all live workers: `unknown` means that none has said anything."""

    READY = "ready"
    LOADING = "loading"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deployment as the decision sees it. `proven` says that some worker once had it ready."""

    id: str
    version: str
    readiness: Readiness = Readiness.UNKNOWN
    proven: bool = False
    error: str | None = None

    @property
    def takes_jobs(self) -> bool:
        """Whether jobs that ask for it find a worker, if not now then soon."""
        return self.proven and self.readiness is not Readiness.FAILED


@dataclass(frozen=True, slots=True)
class Route:
    """Who serves new jobs, who is to take over once it is ready, and why."""

    serving: str | None
    incoming: str | None
    reason: str


NO_ALIAS: Final = "the alias champion names no version"


def next_route(current: Candidate | None, wanted: Candidate, incoming: str | None) -> Route:
    """What follows when the alias names `wanted`, `current` serves, and `incoming` was waited for until now.

    A version takes over once a live worker has it ready, so that no job waits for it; or at once where nothing that is
    ready would be given up. One that workers cannot load never takes over.
    """
    if current is not None and current.id == wanted.id:
        return _stay(wanted)
    if wanted.readiness is Readiness.READY or (_is_news(wanted, incoming) and not _is_ready(current)):
        return Route(wanted.id, None, f"the alias champion names version {wanted.version}")
    meanwhile = f"version {current.version} serves until then" if current else "the model takes no jobs until then"
    return Route(current.id if current else None, wanted.id, f"{_standing(wanted)}; {meanwhile}")


def _stay(wanted: Candidate) -> Route:
    if wanted.readiness is Readiness.FAILED and not wanted.proven:
        return Route(None, wanted.id, f"{_standing(wanted)}; the model takes no jobs until then")
    return Route(wanted.id, None, f"the alias champion names version {wanted.version}")


def _is_news(wanted: Candidate, incoming: str | None) -> bool:
    """Whether the alias has only just come to name it, and nothing speaks against it."""
    return wanted.id != incoming and wanted.readiness is not Readiness.FAILED


def _is_ready(candidate: Candidate | None) -> bool:
    return candidate is not None and candidate.readiness is Readiness.READY


def _standing(wanted: Candidate) -> str:
    if wanted.readiness is Readiness.FAILED:
        return f"version {wanted.version} cannot be loaded ({wanted.error}) and takes over once it can"
    return f"version {wanted.version} takes over once a worker has loaded it"
