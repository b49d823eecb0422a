"""Invoices on their way all the time, each from another customer, who says whether the answer was right."""

import itertools
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from penstock.client import Client, Job, Message, Params
from penstock.errors import PenstockError

_PARAMS: Final[Params] = {"temperature": 0.0, "max_tokens": 128}
_JOB_SECONDS: Final = 120.0
_MOMENT_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Question:
    """An invoice, and the right answer to the letter."""

    text: str
    answer: str

    def holds(self, words: Sequence[str]) -> bool:
        """Whether one of the words stands in it."""
        return any(word in self.text for word in words)


@dataclass(frozen=True)
class Outcome:
    """What became of one question. Without a job: the platform took none, or lost it."""

    question: Question
    job: Job | None = None
    trouble: str | None = None

    @property
    def version(self) -> str | None:
        """Which version of the model served it."""
        return self.job.model_version if self.job is not None else None

    @property
    def failed_with(self) -> str | None:
        """The failed job's error, by its code."""
        return self.job.error.code if self.job is not None and self.job.error is not None else None

    @property
    def succeeded(self) -> bool:
        return self.job is not None and self.job.status == "succeeded"

    @property
    def exact(self) -> bool:
        return self.job is not None and self.job.text == self.question.answer


def questions(file: Path) -> list[Question]:
    """Those of a file of JSON lines."""
    lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return [Question(line["messages"][0]["content"], line["expected"]) for line in lines]


def as_lines(asked: Sequence[Question]) -> bytes:
    """The same as such a file."""
    lines = ({"messages": [_message(each)], "expected": each.answer} for each in asked)
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@dataclass
class Traffic:
    """So many jobs under way at a time, while the block runs; leaving it waits for those that are.

    Every job is another customer's (`metadata.user`). Each answer is judged: 1 where it is right to the letter, else 0.
    """

    client: Client
    model: str
    asked: Sequence[Question]
    at_a_time: int = 8
    outcomes: list[Outcome] = field(default_factory=list)
    _count: "itertools.count[int]" = field(default_factory=itertools.count)
    _lock: threading.Condition = field(default_factory=threading.Condition)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(self.at_a_time)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:  # whoever is interrupted waits a moment at most
            thread.join(None if error is None else _MOMENT_SECONDS)

    @property
    def sent(self) -> int:
        """Questions that have their outcome."""
        return len(self.outcomes)

    def await_sent(self, count: int, alive: Callable[[], None] = lambda: None) -> None:
        """Wait until so many have; `alive` is called now and then, and may raise."""
        with self._lock:
            while not self._lock.wait_for(lambda: self.sent >= count, timeout=1.0):
                alive()

    def _send(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                number = next(self._count)
            outcome = self._ask(number, self.asked[number % len(self.asked)])
            with self._lock:
                self.outcomes.append(outcome)
                self._lock.notify_all()

    def _ask(self, number: int, question: Question) -> Outcome:
        customer = f"customer-{number}"
        try:
            job = self.client.jobs.submit(
                model=self.model,
                messages=[_message(question)],
                params=_PARAMS,
                tags=["rollout-demo"],
                metadata={"user": customer},
            )
            job = self.client.jobs.wait(job.id, timeout=_JOB_SECONDS)
            outcome = Outcome(question, job)
            if outcome.succeeded:
                self.client.jobs.give_feedback(job.id, score=float(outcome.exact), user=customer)
        except PenstockError as error:
            return Outcome(question, trouble=f"{error.code}: {error.message}")
        return outcome


def _message(question: Question) -> Message:
    return {"role": "user", "content": question.text}
