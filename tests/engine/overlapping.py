"""Engines whose steps overlap, what they tell, and in which order they launch and wait."""

from collections.abc import Callable
from functools import partial
from typing import Any

from penstock_engine import (
    Engine,
    EngineConfig,
    Request,
    TokenDelta,
)
from penstock_engine.batch import ScheduleBatch
from penstock_engine.config import Overlap
from penstock_engine.pending import Pending

from tests.engine.driving import check_pages
from tests.engine.tiny import TinyModel

Told = dict[tuple[str, int], list[tuple[int, float | None, str | None]]]


def engine_of(model: TinyModel, overlap: Overlap = "on", **others: Any) -> Engine:
    return Engine.from_folder(model.folder, EngineConfig(**{"dtype": "float32", "overlap": overlap, **others}))


def nothing_left(engine: Engine) -> bool:
    """In flight or in use."""
    return engine._flight is None and engine.stats().pages_in_use == 0


class Watched:
    """Writes down in which order steps are launched and waited for, and who ran in each."""

    def __init__(self, engine: Engine) -> None:
        self.events: list[str] = []
        self.ran: list[list[str]] = []
        self._launch = engine._runner.launch
        engine._runner.launch = self._watched  # type: ignore[method-assign]

    def _watched(self, batch: ScheduleBatch) -> Pending:
        self.ran.append([each.name for each in batch.generations])
        number = len(self.ran)
        pending = self._launch(batch)
        self.events.append(f"launch {number}")
        pending.choose = partial(self._note, f"choose {number}", pending.choose)  # type: ignore[method-assign]
        pending.result = partial(self._note, f"result {number}", pending.result)  # type: ignore[method-assign]
        return pending

    def _note(self, event: str, call: Callable[[], Any]) -> Any:
        if not event.startswith("choose") or event not in self.events:
            self.events.append(event)
        return call()


def told(engine: Engine, requests: list[Request]) -> Told:
    for request in requests:
        engine.submit(request)
    found: Told = {}
    while engine.has_work:
        for delta in engine.step().deltas:
            found.setdefault((delta.request_id, delta.choice), []).append(said(delta))
        check_pages(engine._scheduler, engine._allocator, engine._cache)
    assert engine.stats().pages_in_use == 0
    return found


def said(delta: TokenDelta) -> tuple[int, float | None, str | None]:
    return delta.token_id, delta.logprob, delta.finish_reason
