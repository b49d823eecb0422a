"""One step on its way through the engine, from its schedule to its end."""

from dataclasses import dataclass

from penstock_engine.batch import ScheduleBatch, StepSamples
from penstock_engine.pending import Pending
from penstock_engine.runner import ModelRunner


@dataclass(slots=True)
class Flight:
    """Whatever goes wrong after its launch was asked for is told by `result`, when its turn has come."""

    batch: ScheduleBatch
    started: float  # by the engine's steady clock
    _pending: Pending | None = None
    _failure: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether it is known already that `result` will raise."""
        return self._failure is not None

    def launch(self, runner: ModelRunner) -> None:
        try:
            self._pending = runner.launch(self.batch)
        except Exception as cause:
            self._failure = cause

    def choose(self) -> None:
        """Have the tokens chosen; those before them must be known. Nothing, where that was done."""
        if self._pending is None or self.failed:
            return
        try:
            self._pending.choose()
        except Exception as cause:
            self._failure = cause

    def result(self) -> StepSamples:
        """What came of it, once it is there. Raises what failed."""
        if self._failure is not None:
            raise self._failure
        assert self._pending is not None, "it was not launched"
        return self._pending.result()
