"""How fast jobs are taken, how soon they begin to answer, and how many are done in a second."""

import time
from dataclasses import dataclass

from bench.platform_parts.clients import Caller, Latency, at_once, timed
from bench.platform_parts.house import DEMO_MODEL, House, job_body, null_worker, until

STEP_SECONDS = 0.005  # what a small model takes on a GPU
TOKENS = 16
SAMPLE = (DEMO_MODEL.parent / "samples" / "01.txt").read_text(encoding="utf-8")
WARM_UP = 20


@dataclass(frozen=True)
class Counts:
    """How much each figure takes."""

    submits: int = 1000
    clients: int = 8
    first_events: int = 200
    jobs: int = 1000
    slots: int = 64


@dataclass(frozen=True)
class Submits:
    """So many clients at once, each over a connection of its own; no worker takes the jobs."""

    clients: int
    per_second: float
    latency_ms: Latency
    healthz_per_second: float  # the peer: the same HTTP stack with nothing behind it
    web_cpu_ms: float  # of each submit
    postgres_cpu_ms: float


@dataclass(frozen=True)
class Answers:
    """From sending the submit to what its stream brings, one job at a time."""

    first_event_ms: Latency
    first_token_ms: Latency


@dataclass(frozen=True)
class Jobs:
    """Jobs of so many tokens, from the first submit to the last end by the database's clock.

    `end_to_end` is with clients that submit meanwhile, `served` of jobs that all waited already.
    """

    jobs: int
    tokens: int
    slots: int
    end_to_end_per_second: float
    served_per_second: float
    cpu_ms: dict[str, float]  # of each job that waited already, by kind of process


def body(number: int, tokens: int = TOKENS) -> bytes:
    """A real invoice, a little different each time, for exactly so many tokens."""
    return job_body(f"{number}\n{SAMPLE}", tokens, ignore_eos=True)


def worker() -> tuple[str, ...]:
    """A worker whose engine takes as long for a step as a small model does on a GPU."""
    return null_worker(STEP_SECONDS)


def measure_submits(house: House, counts: Counts, clients: int) -> Submits:
    """Submits, then health checks."""
    each = counts.submits // clients

    def submit(caller: Caller, number: int) -> list[float]:
        return [timed(caller.submit, body(number * each + at)) for at in range(each)]

    at_once(house, clients, lambda caller, _: [timed(caller.submit, body(0)) for _ in range(WARM_UP)])
    before = house.usage()
    seconds, wall = at_once(house, clients, submit)
    after = house.usage()
    _, idle_wall = at_once(house, clients, lambda caller, _: [timed(caller.health) for _ in range(each)])
    spent = {kind: (after.cpu[kind] - before.cpu[kind]) * 1000 / len(seconds) for kind in ("web", "postgres")}
    return Submits(
        clients,
        round(len(seconds) / wall, 1),
        Latency.of(seconds),
        round(each * clients / idle_wall, 1),
        round(spent["web"], 2),
        round(spent["postgres"], 2),
    )


def measure_answers(house: House, counts: Counts) -> Answers:
    """One job after the other, its stream opened as soon as its id is known. A worker waits for them."""
    with Caller(house) as caller:
        seen = [_answer(caller, at) for at in range(WARM_UP + counts.first_events)][WARM_UP:]
    return Answers(Latency.of([first for first, _ in seen]), Latency.of([token for _, token in seen]))


def _answer(caller: Caller, number: int) -> tuple[float, float]:
    began = time.perf_counter()
    job = caller.submit(body(number))
    return caller.first_event(job["id"], began)


def measure_jobs(house: House, counts: Counts) -> Jobs:
    """With a worker all the time; then with one that begins when all jobs wait."""
    house.forget_jobs()
    with house.worker(*worker(), worker_slots=counts.slots):
        _submit_all(house, counts)
        _await_all(house, counts)
        whole, _ = house.seconds_of_jobs()
    house.forget_jobs()
    _submit_all(house, counts)
    with house.worker(*worker(), worker_slots=counts.slots):
        before, done = house.usage(), house.count("succeeded")
        _await_all(house, counts)
        after, rest = house.usage(), counts.jobs - done
        _, serving = house.seconds_of_jobs()
    cpu = {kind: round((spent - before.cpu[kind]) * 1000 / rest, 2) for kind, spent in after.cpu.items()}
    return Jobs(
        counts.jobs, TOKENS, counts.slots, round(counts.jobs / whole, 1), round((counts.jobs - 1) / serving, 1), cpu
    )


def _submit_all(house: House, counts: Counts) -> None:
    def some(caller: Caller, number: int) -> list[float]:
        return [timed(caller.submit, body(at)) for at in range(number, counts.jobs, counts.clients)]

    at_once(house, counts.clients, some)


def _await_all(house: House, counts: Counts) -> None:
    until(lambda: house.count("queued", "running") == 0, "the jobs' end")
    assert house.count("succeeded") == counts.jobs, "not every job succeeded"
