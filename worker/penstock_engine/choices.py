"""What the choices of one request have in common: when it began, when it ended, and which of them are told.

n = 3               0 ──────────►   told as they come
                    1 ─────────────►
                    2 ────►         the request ends with the last of them
n = 1, best_of = 3  0 ──────────┐
                    1 ─────────►┤   held until all have ended; then the likeliest n, renumbered from 0, at once
                    2 ────┘
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from penstock_engine.request import Request, TokenDelta


@dataclass(slots=True)
class InFlight:
    """One request between submission and its last token."""

    request: Request
    open_choices: int
    begun: bool = False
    held: dict[int, list[TokenDelta]] = field(default_factory=dict)  # by choice; only where best_of is above n


class LiveRequests:
    """Every request in flight, by id."""

    def __init__(self) -> None:
        self._live: dict[str, InFlight] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._live

    def __len__(self) -> int:
        return len(self._live)

    def add(self, request: Request, open_choices: int) -> None:
        self._live[request.id] = InFlight(request, open_choices)

    def discard(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self._live.pop(request_id, None)

    def close_choice(self, request_id: str) -> bool:
        """An open choice was dropped. Whether it was the last."""
        live = self._live[request_id]
        live.open_choices -= 1
        return not live.open_choices

    def selects(self, request_id: str) -> bool:
        """Whether the choices of a request in flight are held until all have ended."""
        live = self._live.get(request_id)
        return live is not None and live.request.sampling.selects

    def begin(self, admitted: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """Of the choices that began, those that are the first of their request."""
        first = []
        for request_id, cached in admitted:
            live = self._live.get(request_id)
            if live is None:
                continue  # it was dropped while its first step ran
            if not live.begun:
                first.append((request_id, cached))
            live.begun = True
        return first

    def tell(self, deltas: Iterable[TokenDelta]) -> list[TokenDelta]:
        """What may be told now, in order; those that thereby ended are in flight no longer."""
        told: list[TokenDelta] = []
        for delta in deltas:
            live = self._live.get(delta.request_id)
            if live is None:
                continue  # another choice of it has failed in this step
            if live.request.sampling.selects:
                live.held.setdefault(delta.choice, []).append(delta)
            else:
                told.append(delta)
            live.open_choices -= delta.finish_reason is not None
            if not live.open_choices:
                told += _likeliest(live)
                del self._live[delta.request_id]
        return told


def _likeliest(live: InFlight) -> list[TokenDelta]:
    """The n held choices of the highest cumulative log probability, best first."""
    sampling = live.request.sampling
    ranked = sorted(live.held.values(), key=_total_logprob, reverse=True)
    return [
        delta._replace(choice=at, logprob=delta.logprob if sampling.logprobs is not None else None)
        for at, deltas in enumerate(ranked[: sampling.n])
        for delta in deltas
    ]


def _total_logprob(deltas: list[TokenDelta]) -> float:
    return sum(delta.logprob or 0.0 for delta in deltas)
