"""The engines of one worker share its device: who may load, how much K and V each has, and who makes way for whom.

an engine tells its Needs ──▶ admit: ── fits, once others have shrunk ──▶ Grant ──▶ loads ──▶ settle
                                    └── does not fit: cold ones make way, one after the other, or it is refused
shares change, or one leaves ──▶ rebalance: who has too much shrinks, then the others grow
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from penstock.logs import get_logger

from penstock_worker.device_memory import DoesNotFit, Party, fit, split
from penstock_worker.messages import Needs

_LOOK_SECONDS: Final = 0.1
_SHRINK_SECONDS: Final = 60.0
"""How long an engine may take to give pages up: the step that runs, and a prefill in it may be long."""
_USED_SHARE: Final = 0.95
"""Of what a device of no set size has free: the rest is left to others."""
_NOT_WORTH_IT: Final = 0.1
"""By what part of its K and V an engine may be off before it is resized, since it computes anew what it had."""

log = get_logger(__name__)


class Occupant(Protocol):
    """A version that is on the device, or comes to it."""

    @property
    def deployment_id(self) -> str: ...

    @property
    def name(self) -> str:
        """For people, as in `tiny:2`."""

    @property
    def kv_bytes(self) -> int:
        """What its K and V take now; 0 while it loads."""

    @property
    def makes_way(self) -> bool:
        """Whether it leaves when another needs the room."""

    @property
    def may_leave_now(self) -> bool:
        """Whether it does nothing, or has been here for long enough."""

    def resize(self, kv_bytes: int) -> None:
        """Take so many bytes for K and V."""

    def unload(self) -> None:
        """Leave once its jobs are done."""


@dataclass(slots=True)
class _Place:
    """`kv` is what was granted, or asked for since; None where the engine measures itself."""

    occupant: Occupant
    party: Party
    kv: int | None
    ready: bool = False
    leaving: bool = False

    @property
    def now(self) -> int:
        return self.occupant.kv_bytes if self.ready else self.kv or 0


@dataclass(frozen=True, slots=True)
class Admission:
    """An engine may load, with so much for K and V; None lets it measure. Another took `waited` seconds to make way."""

    kv_bytes: int | None
    waited: float


class Room:
    """One device. `total` is what all engines may take of it, `kv` what of that is for K and V; None is measured."""

    def __init__(self, *, total: int | None = None, kv: int | None = None) -> None:
        self._set_total, self._set_kv = total, kv
        self._total, self._kv = total, kv
        self._places: dict[str, _Place] = {}
        self._shares: Mapping[str, float] = {}
        self._changed = threading.Condition()
        self._admitting = False
        self.departures = 0

    def share_by(self, shares: Mapping[str, float]) -> None:
        """From now on K and V are divided so, by deployment."""
        with self._changed:
            self._shares = shares
            for name, place in self._places.items():
                place.party = replace(place.party, share=shares.get(name, 0.0))

    def admit(self, occupant: Occupant, needs: Needs, gone: Callable[[], bool]) -> Admission:
        """Wait until there is room for it, for as long as others are on their way out. One is admitted at a time.

        Raises `DoesNotFit` where no room can be made, or the newcomer is `gone` meanwhile.
        """
        with self._changed:
            while self._admitting or (self._kv is None and self._places):  # the first is still measuring what there is
                self._pause(occupant, gone)
            self._admitting = True
            try:
                began, departures = time.monotonic(), self.departures
                granted = self._make_room(occupant, needs, gone)
                return Admission(granted, time.monotonic() - began if self.departures > departures else 0.0)
            finally:
                self._admitting = False
                self._changed.notify_all()

    def settle(self, deployment_id: str, *, weight_bytes: int, kv_bytes: int) -> None:
        """It has loaded, and takes this."""
        with self._changed:
            place = self._places[deployment_id]
            place.ready, place.kv = True, kv_bytes
            place.party = replace(place.party, weights=weight_bytes)
            self._kv = self._kv or kv_bytes
            self._changed.notify_all()

    def leave(self, deployment_id: str) -> None:
        """Its process has ended. Once the last has gone, nothing that was measured counts any more."""
        with self._changed:
            place = self._places.pop(deployment_id, None)
            self.departures += place is not None and place.ready
            if not self._places:
                self._total, self._kv = self._set_total, self._set_kv
            self._changed.notify_all()

    def rebalance(self) -> None:
        """Resize engines whose part of K and V is not their share: who grows takes what others have given up by now.

        While one that has no share is on its way out they stay as they are, and are resized once when it has gone.
        """
        with self._changed:
            places = list(self._places.values())
            if self._places.keys() - self._shares.keys():
                return
            if self._admitting or not self._kv or not places or not all(place.ready for place in places):
                return
            for place, target in self._off(places):
                log.info("room.resized", deployment=place.party.id, before=place.now, after=target)
                self._resize(place, target)

    def _off(self, places: list[_Place]) -> list[tuple[_Place, int]]:
        """Who is far from its share, and what it should have; nobody grows into what another still has."""
        parties = [place.party for place in places]
        room = self._room(parties)
        targets, left = split(parties, room), max(0, room - sum(place.now for place in places))
        off = []
        for place in places:
            target = min(targets[place.party.id], place.now + left)
            if abs(target - place.now) > max(_NOT_WORTH_IT * place.now, 2 * place.party.page):
                left -= max(0, target - place.now)
                off.append((place, target))
        return off

    def _room(self, parties: list[Party]) -> int:
        assert self._kv is not None  # somebody is here
        kv = self._nominal(self._kv, parties)
        return kv if self._total is None else max(0, min(kv, self._total - sum(party.fixed for party in parties)))

    def _nominal(self, kv: int, parties: list[Party]) -> int:
        """For K and V of all: what was set, or what was measured by the first, and more where sequences are long."""
        return kv if self._set_kv is not None else max(kv, sum(party.longest for party in parties))

    # Admission

    def _make_room(self, occupant: Occupant, needs: Needs, gone: Callable[[], bool]) -> int | None:
        total = self._total = self._measured(needs)
        newcomer = self._party(occupant, needs)
        self._kv = self._kv or needs.kv
        shrinking_since: float | None = None
        while True:
            try:
                given = self._fit(newcomer, total)
            except DoesNotFit:
                self._have_one_leave(newcomer, total)
                self._pause(occupant, gone)
                continue
            if self._shrunk(given):
                granted = given[newcomer.id] if self._kv is not None else None
                self._places[newcomer.id] = _Place(occupant, newcomer, granted)
                return granted
            shrinking_since = shrinking_since or time.monotonic()
            if time.monotonic() - shrinking_since > _SHRINK_SECONDS:
                raise DoesNotFit(f"the other versions gave no memory up for {newcomer.name} in {_SHRINK_SECONDS:.0f} s")
            self._pause(occupant, gone)

    def _measured(self, needs: Needs) -> int:
        """What all engines may take together. A CPU's pools take their memory as they are used: it counts as free."""
        if self._set_total is not None:
            return self._set_total
        ready = [place for place in self._places.values() if place.ready]
        pools = sum(place.now for place in ready) if needs.kv is None else 0
        return int(needs.free * _USED_SHARE) + sum(place.party.fixed for place in ready) + pools

    def _party(self, occupant: Occupant, needs: Needs) -> Party:
        name = occupant.deployment_id
        return Party(
            id=name,
            name=occupant.name,
            weights=needs.weights,
            workspace=needs.workspace,
            page=needs.page,
            longest=needs.longest,
            most=needs.most,
            share=self._shares.get(name, 0.0),
        )

    def _fit(self, newcomer: Party, total: int, *, without: frozenset[str] = frozenset()) -> dict[str, int]:
        parties = [place.party for name, place in self._places.items() if name not in without]
        kv = self._kv if self._kv is not None else max(total - newcomer.fixed, 0)
        return fit(parties, newcomer, kv=self._nominal(kv, [*parties, newcomer]), total=total)

    def _shrunk(self, given: Mapping[str, int]) -> bool:
        """Whether nobody has more than it is given; who has is told so, once it has loaded."""
        over = [place for name, place in self._places.items() if place.now > given[name]]
        for place in over:
            if place.ready and place.kv != given[place.party.id]:
                self._resize(place, given[place.party.id])
        return not over

    def _resize(self, place: _Place, kv_bytes: int) -> None:
        place.kv = kv_bytes
        place.occupant.resize(kv_bytes)

    def _have_one_leave(self, newcomer: Party, total: int) -> None:
        """Of those that make way, who does nothing or has been here long. Raises `DoesNotFit` where that is no help."""
        cold = {name for name, place in self._places.items() if place.leaving or place.occupant.makes_way}
        self._fit(newcomer, total, without=frozenset(cold))
        if any(place.leaving for place in self._places.values()):
            return
        able = [place for name, place in self._places.items() if name in cold and place.occupant.may_leave_now]
        if able:
            able[0].leaving = True
            log.info("room.made", leaves=able[0].party.id, comes=newcomer.id)
            able[0].occupant.unload()

    def _pause(self, occupant: Occupant, gone: Callable[[], bool]) -> None:
        if gone():
            raise DoesNotFit(f"{occupant.name} is wanted no more")
        self._changed.wait(_LOOK_SECONDS)
