"""A record of the last steps: who ran when, as prefill or decoding, who was preempted; for a picture of occupancy."""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from penstock_engine.batch import ScheduleBatch


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step; `start` in seconds of an arbitrary but steady clock. Ids are requests', or `id/choice` from 1 on."""

    step: int
    start: float
    seconds: float
    extended: dict[str, int]  # tokens of each that prefilled
    decoded: list[str]  # one token each
    admitted: list[str]
    preempted: list[str]
    ended: dict[str, str]  # why: a finish reason, or a failure's code
    waiting: int


class StepTrace:
    """A ring of the last `capacity` records; with none, nothing is recorded."""

    def __init__(self, capacity: int) -> None:
        self._records: deque[StepRecord] = deque(maxlen=capacity)

    def __iter__(self) -> Iterator[StepRecord]:
        return iter(self._records)

    def record(self, step: int, start: float, seconds: float, batch: ScheduleBatch, waiting: int) -> None:
        """Keep what became of `batch`, which has been committed."""
        if not self._records.maxlen:
            return
        ran = [
            (_name(each.request.id, each.choice), extend_len)
            for each, extend_len in zip(batch.generations, batch.extend_lens, strict=True)
        ]
        ended = {_name(each.request_id, each.choice): str(each.finish_reason) for each in batch.deltas}
        record = StepRecord(
            step=step,
            start=start,
            seconds=seconds,
            extended={name: extend_len for name, extend_len in ran if extend_len > 1},
            decoded=[name for name, extend_len in ran if extend_len == 1],
            admitted=[request_id for request_id, _ in batch.admitted],
            preempted=[_name(each.request.id, each.choice) for each in batch.preempted],
            ended={name: reason for name, reason in ended.items() if reason != "None"}
            | {_name(each.request_id, each.choice): each.code for each in batch.failures},
            waiting=waiting,
        )
        self._records.append(record)

    def export(self, path: Path) -> int:
        """Write the records to `path`, oldest first, a JSON object in each line; returns how many."""
        lines = [json.dumps(asdict(record)) + "\n" for record in self._records]
        path.write_text("".join(lines), encoding="utf-8")
        return len(lines)


def _name(request_id: str, choice: int) -> str:
    return f"{request_id}/{choice}" if choice else request_id
