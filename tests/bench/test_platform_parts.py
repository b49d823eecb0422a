"""The engine that computes nothing, the readers that count, and how the platform's figures are judged."""

import socket
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest
from penstock_worker.messages import (
    Commands,
    EngineSpec,
    FromEngine,
    Ready,
    Sampling,
    StepReport,
    Submit,
    decode_report,
    encode,
)

from bench.platform_parts import report
from bench.platform_parts.clients import Latency, Readers
from bench.platform_parts.house import Usage, environment, job_body
from bench.platform_parts.null_engine import NullEngine
from bench.platform_parts.streams import Crowd

PROMPT = [7, 8, 9]


class Worker:
    """The other end of a null engine's pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def tell(self, **commands: Any) -> None:
        self._connection.send_bytes(encode(Commands(**commands)))

    def hear(self) -> FromEngine:
        assert self._connection.poll(30), "the engine says nothing"
        return decode_report(self._connection.recv_bytes())

    def report(self) -> StepReport:
        heard = self.hear()
        assert isinstance(heard, StepReport)
        return heard


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A worker with a null engine of four places."""
    ours, theirs = Pipe()
    engine = NullEngine(theirs, EngineSpec("/nowhere", max_running=4))
    thread = threading.Thread(target=engine.run)
    thread.start()
    worker = Worker(ours)
    assert worker.hear() == Ready("cpu", 4)
    yield worker
    worker.tell(stop=True)
    thread.join(30)
    assert not thread.is_alive()


def request(request_id: str, tokens: int, **sampling: Any) -> Submit:
    return Submit(request_id, PROMPT, [], Sampling(max_tokens=tokens, **sampling), "ten", 0, "batch")


def test_every_step_brings_the_prompts_next_token_until_the_most(worker: Worker) -> None:
    worker.tell(submits=[request("a", 4)])
    reports = [worker.report() for _ in range(4)]
    deltas = [delta for report in reports for delta in report.deltas]
    assert [delta.token_id for delta in deltas] == [7, 8, 9, 7]
    assert [delta.finish_reason for delta in deltas] == [None, None, None, "length"]
    assert [each.step for each in reports] == [1, 2, 3, 4]
    assert reports[0].admitted == [("a", 0)]
    assert [each.free_slots for each in reports] == [3, 3, 3, 4]
    assert all(share.request_id == "a" for each in reports for share in each.shares)


def test_a_resumed_request_goes_on_where_it_was_and_each_choice_has_its_place(worker: Worker) -> None:
    sampling = Sampling(max_tokens=3, n=3, logprobs=0)
    worker.tell(submits=[Submit("a", PROMPT, [[7, 8], [7], []], sampling, "ten", 0, "batch", closed=[2])])
    first, second = worker.report(), worker.report()
    assert first.received == 2
    assert [(delta.choice, delta.token_id) for delta in first.deltas] == [(0, 9), (1, 8)]
    assert [(delta.choice, delta.token_id) for delta in second.deltas] == [(1, 9)]
    assert first.deltas[0].logprob is not None


def test_pings_are_answered_without_a_step_and_aborts_free_the_place(worker: Worker) -> None:
    worker.tell(submits=[request("a", 1000), request("b", 1000)], paused=True)
    assert worker.report().free_slots == 2
    worker.tell(aborts=[("a", None)], ping=5, paused=True)
    answer = worker.report()
    assert (answer.pong, answer.step, answer.free_slots, answer.deltas) == (5, 0, 3, [])


def test_readers_count_tokens_that_come_in_pieces() -> None:
    ours, theirs = socket.socketpair()
    readers = Readers(SimpleNamespace(key="", port=0))  # type: ignore[arg-type]  # it connects to nothing
    readers._selector.register(ours, 1)
    pieces = ("HTTP/1.1 200 OK\r\n\r\nid: 1.1\nevent: output.del", "ta\ndata: {}\n\nevent: output.delta\nda", "ta: {}")
    for piece in pieces:
        theirs.sendall(piece.encode())
        readers._take(ours)
    assert (readers.tokens, readers.heard, readers.failed, readers.ended) == (2, 1, 0, 0)
    theirs.close()
    readers._take(ours)
    assert readers.ended == 1


def test_a_reader_that_is_refused_has_failed() -> None:
    ours, theirs = socket.socketpair()
    readers = Readers(SimpleNamespace(key="", port=0))  # type: ignore[arg-type]  # it connects to nothing
    readers._selector.register(ours, 1)
    theirs.sendall(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
    readers._take(ours)
    assert readers.failed == 1
    theirs.close()
    readers._take(ours)


def test_latencies_are_milliseconds_of_ordered_calls() -> None:
    told = Latency.of([at / 1000 for at in range(100, 0, -1)])
    assert (told.calls, told.p50, told.p95, told.p99) == (100, 50.5, 96.0, 100.0)


def test_shares_of_a_core_are_of_the_time_between() -> None:
    before, after = Usage(10.0, {"web": 1.0}, {}), Usage(14.0, {"web": 3.0, "worker": 1.0}, {})
    assert after.shares_since(before) == {"web": 0.5, "worker": 0.25}


def test_figures_are_found_in_their_parts_and_judged() -> None:
    parts = {"submits": {"many": {"per_second": 250.0}}, "claims": {"many_over_few": 0.7}, "lines": None}
    found = report.figures(parts)
    assert (found["submits_per_second"], found["claims_at_100000_over_100"], found["batch_lines"]) == (250.0, 0.7, None)
    met = {each["key"]: each["met"] for each in report.verdicts(found)}
    assert (met["submits_per_second"], met["claims_at_100000_over_100"], met["batch_lines"]) == (True, False, None)


def test_every_target_has_its_place_in_the_record() -> None:
    assert {each.key for each in report.TARGETS} <= set(report.figures({}))


def test_a_crowds_web_process_has_places_for_all_its_streams() -> None:
    assert Crowd(readers=1000).web_threads * 3 // 4 >= 1000


def test_what_a_process_is_told_are_the_settings_that_were_given(settings: Any) -> None:
    told = environment(settings, worker_slots=7)
    assert told["PENSTOCK_REDIS_URL"] == settings.redis_url.get_secret_value()
    assert told["PENSTOCK_WORKER_SLOTS"] == "7"
    assert "PENSTOCK_WEB_THREADS" not in told


def test_a_job_asks_for_exactly_its_tokens() -> None:
    assert b'"max_tokens": 5' in job_body("x", 5, ignore_eos=True)
