"""Everything at once, in any order: arrivals, choices, aborts, deadlines, faults, failed steps, any pool and policy.

After each operation every page is accounted for and nobody would read what is not theirs (see `house`); in the end
each request has ended exactly once, with just the tokens that it would have got alone.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch
from zlib import crc32

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from penstock_engine import waiting
from penstock_engine.batch import ScheduleBatch
from penstock_engine.choices import LiveRequests
from penstock_engine.request import Generation, Request, SamplingParams, TokenDelta

from tests.engine.house import House

STOP = 4
PATIENCE = 3  # admissions; few, so that it has its say among few requests
STEM = [at * at % 5 for at in range(20)]
PROMPTS = st.builds(  # they often share a beginning, and are often the same
    lambda shared, own: STEM[:shared] + own,
    st.sampled_from([1, 2, 6, 7, 8, 13, 13, 18]),
    st.lists(st.integers(0, 1), max_size=2),
)
SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.sampled_from([1, 2, 6, 12]),
    n=st.sampled_from([1, 1, 2, 3]),
    best_of=st.sampled_from([None, None, None, 4]),
    prompt_logprobs=st.sampled_from([None, None, None, None, 0]),
    stop_token_ids=st.just((STOP,)),
)


def token_of(generation: Generation) -> int:
    """Depends on the choice and the position alone, as the engine's noise does."""
    return said(generation.request.id, generation.choice, generation.output_len)


def said(name: str, choice: int, position: int) -> int:
    number = crc32(f"{name}/{choice}/{position}".encode())
    return STOP if number % 31 == 0 else number % 2


def expected(request: Request, choice: int) -> list[int]:
    tokens = [said(request.id, choice, at) for at in range(request.sampling.max_tokens or 0)]
    return tokens[: tokens.index(STOP) + 1] if STOP in tokens else tokens


class Traffic(RuleBasedStateMachine):
    """A poisonous request fails every step that it is in ("raise"), or has no finite logits ("nan")."""

    @initialize(
        pages=st.sampled_from([8, 9, 10, 12, 16, 30]),  # eight hold the largest request alone
        max_running=st.sampled_from([1, 3, 5, 8]),
        extra_budget=st.sampled_from([0, 5, 20, 60]),
        policy=st.sampled_from(["continuous", "continuous", "continuous", "static", "request"]),
        cached=st.sampled_from([True, True, True, False]),
        quantum=st.sampled_from([1, 50]),
        overlap=st.booleans(),
    )
    def build(self, pages: int, max_running: int, extra_budget: int, **others: Any) -> None:
        self.house = House(pages=pages, max_running=max_running, budget=max_running + extra_budget, **others)
        self.live = LiveRequests()
        self.requests: dict[str, Request] = {}
        self.told: dict[str, list[TokenDelta]] = {}
        self.ends: Counter[str] = Counter()
        self.finished: set[str] = set()
        self.scored: Counter[str] = Counter()
        self.now = 0.0
        self.admissions = 0
        self.turn = PATIENCE + max_running  # admissions between two turns of the oldest: a step's twins may overshoot
        self.turns: dict[Generation, int] = {}  # the admission by which each that waits must have had its own

    @rule(
        prompts=st.lists(st.tuples(PROMPTS, st.sampled_from(["", "", "acme"])), min_size=1, max_size=4),
        sampling=SAMPLING,
        priority=st.integers(0, 1),
        request_class=st.sampled_from(["interactive", "batch", "batch"]),
        tenant=st.sampled_from(["a", "b"]),
        patience=st.sampled_from([None, None, None, None, 2, 10]),
        kind=st.sampled_from(["ok"] * 8 + ["raise", "nan"]),
    )
    def submit(
        self,
        prompts: list[tuple[list[int], str]],
        sampling: SamplingParams,
        patience: int | None,
        kind: str,
        **others: object,
    ) -> None:
        for prompt, namespace in prompts:
            self._submit(prompt, sampling, patience, kind, namespace=namespace, **others)

    def _submit(
        self, prompt: list[int], sampling: SamplingParams, patience: int | None, kind: str, **others: object
    ) -> None:
        name = f"{kind}-{len(self.requests)}"
        deadline = None if patience is None else self.now + patience
        request = Request(name, prompt, sampling, deadline=deadline, **others)  # type: ignore[arg-type]
        self.requests[name] = request
        waiting_now = len(self.house.scheduler.waiting)
        generations = self.house.submit(request)
        self.live.add(request, len(generations))
        for at, generation in enumerate(generations, 1):
            self.turns[generation] = self.admissions + self.turn * (waiting_now + at)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.requests)))
        was_live = name in self.live
        self.live.discard([name])
        assert self.house.abort(name) == was_live
        self.ends[name] += was_live
        self.house.check()

    @rule(later=st.sampled_from([0, 0, 1]), largest=st.sampled_from([None, None, None, 3]))
    def step(self, later: int = 0, largest: int | None = None) -> None:
        """More than `largest` tokens lack memory."""
        self.now += later

        def fault(batch: ScheduleBatch) -> Exception | None:
            if largest is not None and sum(batch.extend_lens) > max(largest, 1):
                return MemoryError("no room")
            poison = any(each.request.id.startswith("raise") for each in batch.generations)
            return ValueError("poison") if poison else None

        with self._watched():
            deltas = self.house.step(token_of, finite=_is_finite, fault=fault, now=self.now)
        batch = self.house.last
        assert batch is not None
        self.live.begin(batch.admitted)
        for failure in batch.failures:
            self._note_failure(failure.request_id, failure.code)
        self.live.discard(failure.request_id for failure in batch.failures)
        for found in batch.prompt_logprobs:
            assert len(found.logprobs) == len(self.requests[found.request_id].prompt_ids) - 1
            self.scored[found.request_id] += 1
        for delta in self.live.tell(deltas):
            self.told.setdefault(delta.request_id, []).append(delta)
        for name in [name for name in self.told if name not in self.live and not self.ends[name]]:
            self.finished.add(name)
            self.ends[name] += 1
        self._check_turns(batch)

    @rule()
    def failed_step(self) -> None:
        """The device dies in the middle of a step: the copies may be done or not, nothing is committed."""
        with self._watched():
            self.house.failed_step()

    @rule()
    def lack_memory(self) -> None:
        self.house.scheduler.shrink()

    def teardown(self) -> None:
        if not hasattr(self, "house"):
            return
        for _ in range(3000):
            if not self.house.busy:
                break
            self.step()
        assert not self.house.busy, "no end in sight"
        assert len(self.live) == 0
        assert self.ends == Counter(dict.fromkeys(self.requests, 1))
        self._check_told()
        assert self.house.allocator.free_count + self.house.cache.evictable_count == self.house.allocator.total

    def _note_failure(self, name: str, code: str) -> None:
        kind = name.partition("-")[0]
        by_fault = {"ok": set(), "raise": {"forward_failed"}, "nan": {"logits_not_finite"}}[kind]
        assert code in by_fault | {"deadline_exceeded"}
        if code == "deadline_exceeded":
            deadline = self.requests[name].deadline
            assert deadline is not None
            assert deadline <= self.now
        self.ends[name] += 1

    def _check_turns(self, batch: ScheduleBatch) -> None:
        """Nobody is passed by more than those before it have turns."""
        for generation, _ in batch.entered:
            self.admissions += 1
            self.turns.pop(generation, None)
        here = set(self.house.scheduler.waiting)
        self.turns = {each: by for each, by in self.turns.items() if each in here}
        assert all(self.admissions <= by for by in self.turns.values())

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Little patience; and who waits behind a leader for a step may miss a turn by it."""
        park = waiting.WaitingQueue.park

        def watched(queue: waiting.WaitingQueue, generation: Generation, behind: Generation) -> None:
            if generation in self.turns:
                self.turns[generation] += self.turn
            park(queue, generation, behind)

        with patch.object(waiting, "PATIENCE", PATIENCE), patch.object(waiting.WaitingQueue, "park", watched):
            yield

    def _check_told(self) -> None:
        for name, deltas in self.told.items():
            request = self.requests[name]
            by_choice: dict[int, list[TokenDelta]] = {}
            for delta in deltas:
                by_choice.setdefault(delta.choice, []).append(delta)
            assert set(by_choice) <= set(range(request.sampling.n))
            order = sorted(by_choice)
            outputs = [[delta.token_id for delta in by_choice[choice]] for choice in order]
            possible = [expected(request, choice) for choice in range(request.sampling.choices)]
            if request.sampling.selects:  # all are equally likely here, so any of them may be told
                assert all(output in possible for output in outputs)
            elif name in self.finished:
                assert outputs == possible
            else:
                assert all(tokens == possible[at][: len(tokens)] for at, tokens in zip(order, outputs, strict=True))
            for mine in by_choice.values():
                assert [delta.position for delta in mine] == list(range(len(mine)))
                assert all(delta.finish_reason is None for delta in mine[:-1])
                assert mine[-1].finish_reason is not None or name not in self.finished


def _is_finite(generation: Generation) -> bool:
    return not generation.request.id.startswith("nan")


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
