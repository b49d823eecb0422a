"""An engine's process without an engine: every step brings tokens that cost nothing, through the same messages.

python -m bench.platform_parts.null_engine [--step-seconds S] [--fails FOLDER] FD PARENT_PID

A worker that runs it in the engine's place (`run_worker(settings, program)`) shows what everything but the model costs.
The tokens are the prompt's own, over and over, so that turning them into text is real work; a choice ends at its
`max_tokens`. The version in the folder that fails gives up every request, as a damaged one does.
"""

import argparse
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

from penstock_worker.engine_process import die_with
from penstock_worker.messages import (
    Commands,
    Delta,
    EngineSpec,
    Ready,
    Refusal,
    Share,
    StepReport,
    Submit,
    decode_commands,
    decode_spec,
    encode,
)

_TOKENS: Final = 16  # of a choice that names no most
_LOGPROB: Final = -0.5


@dataclass
class Choice:
    """One output: `position` is that of its next token."""

    request: Submit
    number: int
    position: int

    @property
    def last_position(self) -> int:
        """Where its last token stands; at least the next one is generated."""
        return max((self.request.sampling.max_tokens or _TOKENS) - 1, self.position)

    def step(self) -> Delta:
        """Its next token."""
        prompt, wanted = self.request.prompt_ids, self.request.sampling.logprobs
        ended = "length" if self.position >= self.last_position else None
        token_id = prompt[self.position % len(prompt)]
        self.position += 1
        logprob = None if wanted is None else _LOGPROB
        return Delta(self.request.request_id, self.number, token_id, logprob, ended)


class NullEngine:
    """Every running choice gets one token a step; a step takes `step_seconds`, or no time at all."""

    def __init__(
        self, connection: Connection, spec: EngineSpec, step_seconds: float = 0.0, *, fails: str | None = None
    ) -> None:
        self._connection = connection
        self._fails = spec.folder == fails
        self._refused: list[Refusal] = []
        self._places = spec.max_running
        self._step_seconds = step_seconds
        self._next_step_at = 0.0
        self._running: list[Choice] = []
        self._began: list[tuple[str, int]] = []
        self._received = self._pong = self._step = 0
        self._paused = self._stopped = False

    @property
    def free_slots(self) -> int:
        """How many more choices may be submitted."""
        return self._places - len(self._running)

    @property
    def _idle(self) -> bool:
        return self._paused or not self._running

    def run(self) -> None:
        """Until a stop is asked for. Raises EOFError when the worker has gone."""
        self._send(Ready("cpu", self.free_slots))
        while not self._stopped:
            told = self._take_commands()
            if not self._idle:
                self._run_step()
            elif told:
                self._send(self._report())

    def _take_commands(self) -> bool:
        """Everything that has been asked until the next step is due; waits when no step is."""
        told = False
        while self._connection.poll(self._patience(told)):
            self._apply(decode_commands(self._connection.recv_bytes()))
            told = True
        return told

    def _patience(self, told: bool) -> float | None:
        if self._idle:
            return 0.0 if told or self._stopped else None
        return max(self._next_step_at - time.perf_counter(), 0.0)

    def _apply(self, commands: Commands) -> None:
        for request in commands.submits:
            if self._fails:
                self._refused.append(Refusal(request.request_id, "logits_not_finite", "the version is damaged"))
                continue
            self._running += _choices(request)
            self._began.append((request.request_id, 0))
        for request_id, number in commands.aborts:
            self._running = [each for each in self._running if not _is_meant(each, request_id, number)]
        self._received += sum(request.places for request in commands.submits)
        self._pong = commands.ping or self._pong
        self._paused = commands.paused
        self._stopped = self._stopped or commands.stop

    def _run_step(self) -> None:
        began = time.perf_counter()
        self._next_step_at = began + self._step_seconds
        self._step += 1
        ran = self._running
        deltas = [choice.step() for choice in ran]
        self._running = [choice for choice, delta in zip(ran, deltas, strict=True) if delta.finish_reason is None]
        admitted, self._began = self._began, []
        self._send(self._report(began, deltas, admitted))

    def _report(
        self, began: float = 0.0, deltas: list[Delta] | None = None, admitted: list[tuple[str, int]] | None = None
    ) -> StepReport:
        ended = time.perf_counter() if deltas else 0.0
        ran = dict.fromkeys(delta.request_id for delta in deltas or ())
        refused, self._refused = self._refused, []
        return StepReport(
            step=self._step,
            received=self._received,
            free_slots=self.free_slots,
            deltas=deltas or [],
            refusals=refused,
            pong=self._pong,
            admitted=admitted or [],
            shares=[Share(request_id, 1, 0, (ended - began) / len(ran)) for request_id in ran],
            began_at=began,
            ended_at=ended,
        )

    def _send(self, message: Ready | StepReport) -> None:
        self._connection.send_bytes(encode(message))


def _choices(request: Submit) -> Iterator[Choice]:
    """Those that have not ended, each after what earlier runs generated of it."""
    for number in range(request.sampling.n):
        if number not in request.closed:
            had = request.output_ids[number] if number < len(request.output_ids) else []
            yield Choice(request, number, len(had))


def _is_meant(choice: Choice, request_id: str, number: int | None) -> bool:
    return choice.request.request_id == request_id and number in (None, choice.number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-seconds", type=float, default=0.0)
    parser.add_argument("--fails")
    parser.add_argument("descriptor", type=int)
    parser.add_argument("parent", type=int)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the worker decides
    die_with(args.parent)
    connection = Connection(args.descriptor)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the worker has ended
        NullEngine(connection, decode_spec(connection.recv_bytes()), args.step_seconds, fails=args.fails).run()


if __name__ == "__main__":
    main()
