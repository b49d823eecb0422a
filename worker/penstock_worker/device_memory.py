"""Who gets what of a device's memory: arithmetic alone.

| weights and workspace of each version | K and V of the first | K and V of the second | not ours |
                                        ^ what `split` divides by shares .............^
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20


class DoesNotFit(Exception):
    """A version was refused before it loaded anything. The message has the arithmetic, and what would fit."""


@dataclass(frozen=True, slots=True)
class Party:
    """A version on the device, in bytes. `fixed` are weights and workspace, whatever K and V get.

    K and V of its longest sequence take `longest`, and more than `most` is of no use to it; with less than two of its
    pages it cannot run. `share` is what it should have of the memory for K and V, 0 to 1; `name` is for people.
    """

    id: str
    name: str
    weights: int
    workspace: int
    page: int
    longest: int
    most: int
    share: float

    @property
    def fixed(self) -> int:
        return self.weights + self.workspace


def split(parties: Sequence[Party], kv: int) -> dict[str, int]:
    """`kv` bytes by shares: nobody gets less than its longest sequence needs, or more than is of use to it.

    Where the longest sequences of all do not fit together, each of those that lack is left an equal part.
    """
    floors = {party.id: min(party.longest, kv // len(parties)) for party in parties}
    given: dict[str, int] = {}
    while len(given) < len(parties):
        open_ones = [party for party in parties if party.id not in given]
        left = kv - sum(given.values())
        asked = _by_share(open_ones, left)
        held = {
            party.id: bound
            for party in open_ones
            if (bound := max(floors[party.id], min(asked[party.id], party.most))) != asked[party.id]
        }
        short = {name: size for name, size in held.items() if size > asked[name]}
        given |= short or held or asked
    return given


def fit(parties: Sequence[Party], newcomer: Party, *, kv: int, total: int) -> dict[str, int]:
    """What each gets for K and V when `newcomer` joins the `parties` on a device with `total` bytes for them all.

    It is `kv` in all, or less where weights leave less, but never less than everybody's longest sequence; one that is
    alone makes do with what there is. Raises `DoesNotFit`.
    """
    everybody = [*parties, newcomer]
    room = min(kv, total - sum(party.fixed for party in everybody))
    least = sum(party.longest for party in everybody) if parties else min(newcomer.longest, max(room, 0))
    given = split(everybody, room) if room >= least else {}
    if not given or any(given[party.id] < 2 * party.page for party in everybody):
        raise DoesNotFit(_arithmetic(parties, newcomer, least=least, total=total))
    return given


def _by_share(parties: Sequence[Party], kv: int) -> dict[str, int]:
    shares = sum(party.share for party in parties)
    if not shares:
        return {party.id: kv // len(parties) for party in parties}
    return {party.id: int(kv * party.share / shares) for party in parties}


def _arithmetic(parties: Sequence[Party], newcomer: Party, *, least: int, total: int) -> str:
    needed = newcomer.fixed + least
    taken = sum(party.fixed for party in parties)
    others = ", ".join(f"{party.name} ({_size(party.fixed)})" for party in parties)
    beside = f", of which {others} keep {_size(taken)}" if parties else ""
    remedy = (
        "give one of them the mode cold or another worker, or use fewer bits"
        if parties
        else "use fewer bits or a device with more"
    )
    return (
        f"{newcomer.name} does not fit: its weights need {_size(newcomer.weights)}, its steps "
        f"{_size(newcomer.workspace)}, and K and V of the longest sequence of each version {_size(least)}, "
        f"{_size(needed)} together; the device has {_size(total)} for engines{beside}, which leaves "
        f"{_size(max(total - taken, 0))}; {remedy}, or set PENSTOCK_ENGINE_MAX_MODEL_LEN or PENSTOCK_WORKER_SLOTS lower"
    )


def _size(count: int) -> str:
    return f"{count / MIB:,.1f} MiB"
