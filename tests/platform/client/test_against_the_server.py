"""The client against the real application, with a real database, a real Redis and connections that are cut."""

import threading

import pytest
from penstock import Client
from penstock.client import JobState, Params, StateEvent, TokenEvent
from penstock.errors import (
    ContextLengthExceeded,
    JobAlreadyFinished,
    JobNotFinished,
    ModelNotFound,
    NotFound,
    Unauthenticated,
    ValidationFailed,
)
from penstock.jobs.schemas import JobParams

from tests.platform.api.conftest import Worker
from tests.platform.client.live import CuttingProxy
from tests.platform.client.real import api_key, app, connected, url, worker

__all__ = ["api_key", "app", "connected", "url", "worker"]  # fixtures


def test_a_job_from_submit_to_its_end(connected: Client, worker: Worker) -> None:
    job = connected.jobs.submit(
        model="tiny", prompt="one two three", params={"temperature": 0.0}, tags=["a"], metadata={"k": "v"}
    )
    assert (job.status, job.usage.prompt_tokens, job.model_version) == (JobState.QUEUED, 3, "1")
    waiting = connected.jobs.get(job.id)
    assert waiting.queue is not None
    assert waiting.queue.position == 1
    worker.claim()
    worker.write("Hé", "llo")
    assert connected.jobs.get(job.id).text == "Héllo"
    worker.finish()
    done = connected.jobs.wait(job.id, timeout=10)
    assert (done.status, done.text) == (JobState.SUCCEEDED, "Héllo")
    assert [event.type for event in done.timeline] == ["job.queued", "job.running", "job.succeeded"]
    assert [run.outcome for run in done.run_history] == ["finished"]
    again = connected.jobs.retry(job.id)
    assert again.retry_of == job.id
    assert [found.id for found in connected.jobs.list(page_size=1)] == [again.id, job.id]
    assert [found.id for found in connected.jobs.list(status=JobState.SUCCEEDED, tag="a")] == [job.id]


def test_a_submit_whose_answers_are_lost_makes_one_job(
    connected: Client, url: str, api_key: str, worker: Worker
) -> None:
    port = int(url.rpartition(":")[2])
    with CuttingProxy(port, budget=20, cuts=2) as proxy, Client(proxy.url, api_key) as client:
        job = client.jobs.submit(model="tiny", prompt="x")
        assert proxy.connections == 3
        job_2 = client.jobs.submit(model="tiny", prompt="x")
    assert [found.id for found in connected.jobs.list()] == [job_2.id, job.id]


def test_an_answer_is_judged(connected: Client, worker: Worker) -> None:
    job = connected.jobs.submit(model="tiny", prompt="x")
    with pytest.raises(JobNotFinished):
        connected.jobs.give_feedback(job.id, score=1.0)
    worker.claim()
    worker.write("Hi")
    worker.finish()
    said = connected.jobs.give_feedback(job.id, score=0.5, label="ok", comment="short", choice=0, user="ann")
    again = connected.jobs.give_feedback(job.id, label="ok", idempotency_key="k")
    assert connected.jobs.give_feedback(job.id, label="ok", idempotency_key="k") == again
    assert (said.score, said.label, said.comment, said.choice, said.user) == (0.5, "ok", "short", 0, "ann")
    assert said.model_version == "1"
    assert list(connected.jobs.feedback(job.id, page_size=1)) == [said, again]
    with pytest.raises(ValidationFailed) as wrong:
        connected.jobs.give_feedback(job.id, score=1.0, choice=1)
    assert wrong.value.field == "choice"


def test_cancelling(connected: Client, worker: Worker) -> None:
    job = connected.jobs.submit(model="tiny", messages=[{"role": "user", "content": "hello"}])
    assert connected.jobs.cancel(job.id).status is JobState.CANCELLED
    with pytest.raises(JobAlreadyFinished):
        connected.jobs.cancel(job.id)


def test_the_servers_refusals_come_as_their_classes(connected: Client, worker: Worker) -> None:
    with pytest.raises(ModelNotFound) as unknown:
        connected.jobs.submit(model="huge", prompt="x")
    assert (unknown.value.field, unknown.value.extra["available"]) == ("model", ["tiny"])
    with pytest.raises(ValidationFailed) as wrong:
        connected.jobs.submit(model="tiny", prompt="x", params={"temperature": 900.0})
    assert wrong.value.field == "params.temperature"
    with pytest.raises(ContextLengthExceeded):
        connected.jobs.submit(model="tiny", prompt="x " * 300)
    with pytest.raises(NotFound):
        connected.jobs.get("job_nothing")
    with Client(connected.url, "psk_test_wrong") as stranger, pytest.raises(Unauthenticated):
        stranger.jobs.get("job_nothing")


def test_every_sampling_parameter_is_typed() -> None:
    assert set(Params.__annotations__) == set(JobParams.model_fields)


def test_models_and_secret(connected: Client, worker: Worker) -> None:
    (model,) = connected.models()
    assert (model.name, model.version, model.ready, model.context_length) == ("tiny", "1", True, 256)
    assert connected.webhook_secret().startswith("whsec_")


@pytest.mark.timeout(60)
def test_a_stream_through_cut_connections_and_a_lost_worker(
    connected: Client,
    worker: Worker,
    api_key: str,
) -> None:
    job = connected.jobs.submit(model="tiny", prompt="hello")
    words = [f"word-{number} " for number in range(80)]

    def work() -> None:
        worker.claim()
        worker.write(*words[:15])
        worker.lose()
        worker.claim()
        for word in words[15:]:
            worker.write(word)
        worker.finish()

    writing = threading.Thread(target=work)
    writing.start()
    with CuttingProxy(int(connected.url.rsplit(":", 1)[1]), budget=5000) as proxy:
        with Client(proxy.url, api_key) as client:
            events = list(client.jobs.stream(job.id))
        assert proxy.connections >= 3
    writing.join()
    tokens = [event for event in events if isinstance(event, TokenEvent)]
    assert [event.position for event in tokens] == list(range(81))
    assert "".join(event.text for event in tokens) == "".join(words)
    states = [event for event in events if isinstance(event, StateEvent)]
    assert [event.type.removeprefix("job.") for event in states] == [
        "queued", "running", "requeued", "running", "succeeded",
    ]  # fmt: skip
    assert states[-1].job is not None
    assert states[-1].job.text == "".join(words)


def test_a_stream_can_be_read_long_after(connected: Client, worker: Worker) -> None:
    job = connected.jobs.submit(model="tiny", prompt="hello")
    worker.claim()
    worker.write("a", "b")
    worker.finish()
    events = list(connected.jobs.stream(job.id))
    for index, event in enumerate(events):
        assert list(connected.jobs.stream(job.id, event.id)) == events[index + 1 :]
