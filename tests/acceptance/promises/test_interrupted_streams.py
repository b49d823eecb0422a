"""A reader's stream goes on, over the same connection, whatever happens to the worker that writes it.

What happens to the journal alone, without a web process and a reader, is tried in `tests/worker/test_lifecycle.py`:
kills, freezes, stalls, crashes, drains, Redis and worker lost at once, with several choices, penalties, structure,
candidates and stop strings.
"""

import socket
from contextlib import ExitStack

import pytest

from tests.acceptance.promises.house import ENDLESS, House, assert_whole
from tests.patience import eventually

pytestmark = pytest.mark.drill

SAMPLED = {
    "temperature": 1.0, "seed": 7, "n": 2, "ignore_eos": True, "max_tokens": 500, "logprobs": True, "top_logprobs": 2,
}  # fmt: skip


@pytest.mark.parametrize("lane", [True, False], ids=["sampled in the lane", "greedy outside the lane"])
def test_a_worker_killed_in_the_middle_is_not_noticed_by_the_reader(house: House, lane: bool) -> None:
    """In the lane all is the same to the bit, also among all tokens and with their log probabilities."""
    params = SAMPLED if lane else ENDLESS
    house.staff(2, engine_deterministic=lane)
    undisturbed = house.finished(house.submit(params=params))
    job_id = house.submit(params=params)
    with house.reader(job_id) as reader:
        reader.read_tokens(60)
        house.holder(job_id).kill()
        had = reader.read_to_end()
    job = house.finished(job_id)
    assert job.output == undisturbed.output
    assert_whole(had, job)
    types = [event.type for event in had if event.type != "output.delta"]
    assert types == ["job.queued", "job.running", "job.requeued", "job.running", "job.succeeded"]
    assert [run.outcome for run in house.jobs.runs(job_id)] == ["lease_lost", "finished"]


def test_readers_that_leave_free_their_threads(house: House) -> None:
    """In the middle of a stream and of a wait, also where nothing is written that would tell of them."""
    before = house.threads_held()
    house.staff(0)
    job_id = house.submit()
    with ExitStack() as connections:
        for _ in range(10):
            stream = connections.enter_context(house.connection())
            stream.sendall(house.request("GET", f"/v1/jobs/{job_id}/events"))
            assert b"job.queued" in _received(stream, b"job.queued")
            connections.enter_context(house.connection()).sendall(house.request("POST", "/v1/jobs", Prefer="wait=60"))
        eventually(lambda: house.threads_held() == before + 20, "all of them")
    eventually(lambda: house.threads_held() == before, "their ends", patience=30)
    assert house.web.post(f"/v1/jobs/{job_id}/cancel").status_code == 200


def _received(stream: socket.socket, sign: bytes) -> bytes:
    """What comes up to and with the sign."""
    had = b""
    while sign not in had:
        had += stream.recv(65536)
    return had
