"""`client.replays`: stored jobs against another version, for operators."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import quote

from penstock.client.documents import Document, parse
from penstock.client.jobs import in_utc
from penstock.client.patience import Patience
from penstock.client.reading import Asking, Pages, Waiting

_PATH: Final = "/v1/admin/replays"
_PAUSE_SECONDS: Final = 0.5
_ENDED: Final = frozenset({"completed", "cancelled"})


class Replay(Document):
    """A replay at one moment."""

    id: str
    status: str
    mode: str
    model: str
    candidate: str
    reference: str
    filter: dict[str, Any]
    total: int
    done: int
    lost: int
    created_at: datetime
    finished_at: datetime | None

    @property
    def finished(self) -> bool:
        """Whether it has ended for good."""
        return self.status in _ENDED


class ReplayPage(Document):
    """One page of a listing."""

    data: list[Replay]
    has_more: bool
    next: str | None


class Replays:
    """The installation's replays. The key needs the scope `operator`."""

    def __init__(self, transport: Asking, *, patience_seconds: float) -> None:
        self._transport, self._patience_seconds = transport, patience_seconds

    def begin(
        self,
        model: str,
        *,
        against: str | None = None,
        mode: Literal["teacher", "free", "both"] = "teacher",
        since: datetime | None = None,
        until: datetime | None = None,
        tenant: str | None = None,
        limit: int | None = None,
    ) -> Replay:
        """Run stored jobs of `against` (the champion, by default) on `model`, as `name@challenger` or `name:version`.

        Raises `ModelNotFound`, `ValidationFailed`, `NotFound` for a tenant, and `TooManyReplays`.
        """
        times = {name: in_utc(moment) for name, moment in (("since", since), ("until", until)) if moment is not None}
        given = {"model": model, "against": against, "mode": mode, "tenant": tenant, "limit": limit} | times
        body = {name: value for name, value in given.items() if value is not None}
        return parse(Replay, self._transport.request("POST", _PATH, body=body))

    def get(self, replay_id: str) -> Replay:
        """The replay as it stands. Raises `NotFound`."""
        return parse(Replay, self._transport.request("GET", _path(replay_id)))

    def list(self, *, page_size: int | None = None) -> Iterator[Replay]:
        """All replays, newest first; each page is fetched when the iterator gets there."""
        return self._transport.pages(Pages(ReplayPage, _PATH, {"limit": page_size}))

    def report(self, replay_id: str) -> dict[str, Any]:
        """What it has found so far, as the API tells it. Raises `NotFound`."""
        return dict(self._transport.request("GET", f"{_path(replay_id)}/report"))

    def cancel(self, replay_id: str) -> Replay:
        """Compare no more; what was found stays. Raises `ReplayFinished`."""
        return parse(Replay, self._transport.request("POST", f"{_path(replay_id)}/cancel"))

    def follow(self, replay_id: str) -> Iterator[Replay]:
        """The replay as it stands, twice a second until it has ended. Outages are borne for `patience`."""
        return self._transport.follow(_ReplayWait(replay_id), Patience(self._patience_seconds))


class _ReplayWait(Waiting[Replay]):
    """Looks at a replay twice a second."""

    def __init__(self, replay_id: str) -> None:
        self.path = _path(replay_id)

    def take(self, answer: Mapping[str, Any], /) -> tuple[Replay, float | None]:
        replay = parse(Replay, answer)
        return replay, None if replay.finished else _PAUSE_SECONDS


def _path(replay_id: str) -> str:
    return f"{_PATH}/{quote(replay_id, safe='')}"
