"""A job's stream: complete, in order, and resumable at every event, whatever fails underneath."""

from collections.abc import Callable, Iterator
from itertools import islice

import pytest
from flask import Flask
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.documents import EventDocument, FinalEvent, Output, OutputDelta
from penstock.jobs.journal import Journal, JournalEntry, PromptToken
from penstock.jobs.live import LiveBroadcaster
from penstock.jobs.states import JobState
from penstock.jobs.stream import Cursor, JobStream, Sources, StreamItem
from redis import Redis

from tests.platform.api.conftest import Caller, Received, Worker, stream

pytestmark = pytest.mark.usefixtures("deployment")


@pytest.fixture
def live(app: Flask) -> LiveBroadcaster:
    """The application's own, which ends with it."""
    broadcaster: LiveBroadcaster = app.extensions["penstock"].live
    return broadcaster


def finished_job(caller: Caller, worker: Worker, *texts: str) -> str:
    job_id = caller.submit()
    worker.claim()
    worker.write(*texts)
    worker.finish()
    return job_id


def text_of(events: list[Received]) -> str:
    return "".join(event.data["text"] for event in events if event.type == "output.delta")


def test_a_finished_job_replays_from_its_beginning(caller: Caller, worker: Worker) -> None:
    job_id = finished_job(caller, worker, "Hel", "lo")
    events = list(stream(caller, job_id))

    assert [event.type for event in events] == [
        "job.queued",
        "job.running",
        "output.delta",
        "output.delta",
        "output.delta",
        "job.succeeded",
    ]
    assert [event.id for event in events] == ["1.0", "2.0", "2.1", "2.2", "2.3", "3.3"]
    assert text_of(events) == "Hello"
    assert events[-2].data["finish_reason"] == "stop"
    assert events[-1].data["job"]["output"]["choices"][0]["text"] == "Hello"


def test_every_event_is_what_the_document_says(caller: Caller, worker: Worker) -> None:
    *events, last = stream(caller, finished_job(caller, worker, "a"))

    for event in events:
        model = OutputDelta if event.type == "output.delta" else EventDocument
        model.model_validate(event.data)
    FinalEvent.model_validate(last.data)


def test_a_stream_resumes_exactly_after_every_event(caller: Caller, worker: Worker) -> None:
    job_id = caller.submit()
    worker.claim()
    worker.write("a", "b")
    worker.lose()
    worker.claim()
    worker.write("c")
    worker.finish()
    whole = list(stream(caller, job_id))

    assert text_of(whole) == "abc"
    for number, event in enumerate(whole[:-1], start=1):
        assert list(stream(caller, job_id, event.id)) == whole[number:], event.id


def test_after_the_last_event_there_is_no_content(caller: Caller, worker: Worker) -> None:
    job_id = finished_job(caller, worker, "a")
    *_, last = stream(caller, job_id)

    assert caller.get(f"/v1/jobs/{job_id}/events", Last_Event_ID=last.id).status_code == 204


def test_the_query_resumes_for_those_who_cannot_set_the_header(caller: Caller, worker: Worker) -> None:
    job_id = finished_job(caller, worker, "a")
    answer = caller.get(f"/v1/jobs/{job_id}/events?last_event_id=2.0")

    assert "id: 2.1" in answer.text
    assert "id: 2.0\n" not in answer.text


def test_a_live_reader_gets_each_token_as_it_is_journalled(caller: Caller, worker: Worker) -> None:
    job_id = caller.submit()
    events = stream(caller, job_id)
    assert next(events).type == "job.queued"

    worker.claim()
    assert next(events).type == "job.running"
    worker.write("one")
    assert next(events).data["text"] == "one"
    worker.write("two", "three")
    assert [event.data["text"] for event in islice(events, 2)] == ["two", "three"]
    worker.finish()
    assert [event.type for event in events] == ["output.delta", "job.succeeded"]


def test_a_cancelled_waiting_job_ends_its_stream(caller: Caller) -> None:
    job_id = caller.submit()
    events = stream(caller, job_id)
    next(events)
    caller.post(f"/v1/jobs/{job_id}/cancel")

    assert [event.type for event in events] == ["job.cancelled"]


def test_a_lost_worker_neither_repeats_nor_drops_a_token(caller: Caller, worker: Worker) -> None:
    job_id = caller.submit()
    events = stream(caller, job_id)
    worker.claim()
    worker.write("a", "b")
    early = list(islice(events, 4))
    worker.lose()
    worker.claim()
    worker.write("c")
    worker.finish()
    whole = early + list(events)

    assert [event.type for event in whole if event.type != "output.delta"] == [
        "job.queued",
        "job.running",
        "job.requeued",
        "job.running",
        "job.succeeded",
    ]
    assert text_of(whole) == "abc"
    assert [event.data["position"] for event in whole if event.type == "output.delta"] == [0, 1, 2, 3]


def test_a_reader_who_is_told_nothing_still_gets_it_all(
    caller: Caller, worker: Worker, redis: Redis, live: LiveBroadcaster
) -> None:
    job_id = caller.submit()
    worker.claim()
    batches = settled_batches(worker, live, job_id)
    worker.journal = MuteJournal(redis)
    worker.write("a")
    worker.finish(announce=False)

    items = next(batch for batch in islice(batches, 5) if batch)
    assert [item.type for item in items] == ["output.delta", "output.delta", "job.succeeded"]


def test_a_lost_publication_is_made_up_from_the_journal(
    caller: Caller, worker: Worker, redis: Redis, live: LiveBroadcaster
) -> None:
    job_id = caller.submit()
    worker.claim()
    worker.write("nothing ")
    batches = settled_batches(worker, live, job_id)
    telling, worker.journal = worker.journal, MuteJournal(redis)
    worker.write("is ", "lost ")
    worker.journal = telling
    worker.write("here")

    items = next(batch for batch in islice(batches, 5) if batch)
    assert [item.data["text"] for item in items] == ["is ", "lost ", "here"]


def settled_batches(worker: Worker, live: LiveBroadcaster, job_id: str) -> Iterator[list[StreamItem]]:
    """The batches of a new reader that has had everything so far and has nothing left to look at."""
    batches = JobStream(Sources(worker.database, worker.journal, live), job_id, Cursor()).follow()
    assert next(batches)
    assert next(batches) == []  # that it is connected was news, and made it look
    return batches


def test_what_redis_lost_at_the_very_end_comes_from_the_database(
    caller: Caller, worker: Worker, redis: Redis, database: Database
) -> None:
    job_id = caller.submit()
    held = worker.claim()
    worker.write("a")
    events = stream(caller, job_id)
    list(islice(events, 3))
    worker.entries.append(JournalEntry(0, 1, 8, "b", None, held.fence))
    redis.flushall()
    with database.transaction() as session:
        lease.finish(session, held, lease.Finish(JobState.SUCCEEDED, worker.entries, prompt_tokens=2))

    assert [(event.id, event.type) for event in events] == [("2.2", "output.delta"), ("3.2", "job.succeeded")]


def test_a_run_that_begins_between_two_looks_is_not_mistaken_for_the_last_one(
    caller: Caller, worker: Worker, redis: Redis, database: Database, live: LiveBroadcaster
) -> None:
    """The reader reads the events, then a new run rewinds the output and goes on, then the reader reads the journal."""
    job_id = caller.submit()
    worker.claim()
    worker.write("old", "old")

    def rewind() -> None:
        redis.flushall()
        worker.lose()
        held = worker.claim()
        with database.transaction() as session:
            lease.note_rewind(session, held, 0)
        worker.write("new", "new", "new")

    sources = Sources(database, InterruptedJournal(redis, rewind), live)
    items = next(JobStream(sources, job_id, Cursor(2, 2)).follow())

    assert [str(item.cursor) for item in items] == ["3.2", "4.2", "5.0", "5.1", "5.2", "5.3"]
    assert [item.data["text"] for item in items[3:]] == ["new", "new", "new"]


def test_tokens_that_redis_and_worker_lost_together_are_rewound_aloud(
    caller: Caller, worker: Worker, redis: Redis, database: Database
) -> None:
    job_id = caller.submit()
    events = stream(caller, job_id)
    worker.claim()
    worker.write("kept")
    worker.checkpoint()
    worker.write("lost", "lost too")
    early = list(islice(events, 5))
    redis.flushall()
    worker.lose()
    held = worker.claim()
    with database.transaction() as session:
        lease.note_rewind(session, held, len(worker.entries))
    worker.journal.rewrite(job_id, held.fence, worker.entries)
    worker.write("new", "newer", "newest")
    worker.finish()
    late = list(events)

    assert text_of(early) == "keptlostlost too"
    assert [event.type for event in late][:3] == ["job.requeued", "job.running", "output.rewound"]
    assert late[2].data["data"] == {"position": 1}
    assert (late[2].id, late[3].id) == ("5.1", "5.2")
    assert text_of(late) == "newnewernewest"
    assert text_of(list(stream(caller, job_id))) == "keptnewnewernewest"
    assert text_of(list(stream(caller, job_id, early[-1].id))) == "newnewernewest"


def test_the_rewind_is_noticed_even_when_its_run_was_announced_before_it(
    caller: Caller, worker: Worker, redis: Redis, database: Database
) -> None:
    job_id = caller.submit()
    events = stream(caller, job_id)
    worker.claim()
    worker.write("lost", "lost")
    list(islice(events, 4))
    redis.flushall()
    worker.lose()
    held = worker.claim()
    assert [event.type for event in islice(events, 2)] == ["job.requeued", "job.running"]
    with database.transaction() as session:
        lease.note_rewind(session, held, 0)
    worker.write("new", "new", "new")

    assert [event.type for event in islice(events, 2)] == ["output.rewound", "output.delta"]
    worker.finish()
    assert [event.data["position"] for event in events if event.type == "output.delta"] == [1, 2, 3]


def test_a_finished_job_replays_without_redis_having_it(caller: Caller, worker: Worker, redis: Redis) -> None:
    job_id = finished_job(caller, worker, "Hel", "lo")
    before = list(stream(caller, job_id))
    redis.flushall()

    assert list(stream(caller, job_id)) == before


def test_a_new_reader_of_a_running_job_gets_the_checkpoint_when_redis_was_emptied(
    caller: Caller, worker: Worker, redis: Redis
) -> None:
    job_id = caller.submit()
    worker.claim()
    worker.write("a", "b")
    worker.checkpoint()
    redis.flushall()

    assert text_of(list(islice(stream(caller, job_id), 4))) == "ab"


def test_log_probabilities_are_streamed_and_kept_where_they_were_asked_for(caller: Caller, worker: Worker) -> None:
    job_id = caller.submit(params={"logprobs": True, "top_logprobs": 1, "prompt_logprobs": 1, "n": 2})
    held = worker.claim()
    prompt = (PromptToken(5, None), PromptToken(6, -2.0, ((9, -0.1),)))
    worker.entries = [
        JournalEntry(0, 0, None, "", None, held.fence, prompt=prompt),
        JournalEntry(0, 0, 7, "x", -0.25, held.fence, top_logprobs=((7, -0.25),)),
        JournalEntry(1, 0, 8, "y", -0.5, held.fence, top_logprobs=((7, -0.25),)),
        JournalEntry(1, 1, None, "", None, held.fence, "stop"),
    ]
    worker.journal.rewrite(job_id, held.fence, worker.entries)
    worker.finish(JobState.SUCCEEDED)
    events = list(stream(caller, job_id))
    deltas = [event.data for event in events if event.type == "output.delta"]

    assert [OutputDelta.model_validate(delta).choice for delta in deltas] == [0, 0, 1, 1, 0]
    scored = [
        {"token_id": 5, "logprob": None, "top_logprobs": []},
        {"token_id": 6, "logprob": -2.0, "top_logprobs": [{"token_id": 9, "logprob": -0.1}]},
    ]
    likeliest = [{"token_id": 7, "logprob": -0.25}]
    assert (deltas[0]["prompt_logprobs"], deltas[0]["token_id"], deltas[0]["text"]) == (scored, None, "")
    assert (deltas[1]["logprob"], deltas[1]["top_logprobs"]) == (-0.25, likeliest)
    assert {"logprob", "top_logprobs", "prompt_logprobs"}.isdisjoint(deltas[3])
    output = events[-1].data["job"]["output"]
    Output.model_validate(output)
    assert output["prompt_logprobs"] == scored
    assert [choice["text"] for choice in output["choices"]] == ["x", "y"]
    assert output["choices"][1]["logprobs"] == [{"token_id": 8, "logprob": -0.5, "top_logprobs": likeliest}]


@pytest.mark.parametrize("cursor", ["nonsense", "3", "3.", "-1.0", "1.0.0", "１.0", "99999999999.0"])
def test_an_event_id_that_is_none_is_refused(caller: Caller, cursor: str) -> None:
    answer = caller.get(f"/v1/jobs/{caller.submit()}/events?last_event_id={cursor}")

    assert (answer.status_code, answer.json["code"], answer.json["field"]) == (
        422,
        "validation_failed",
        "Last-Event-ID",
    )


def test_an_event_that_has_not_happened_is_refused(caller: Caller) -> None:
    answer = caller.get(f"/v1/jobs/{caller.submit()}/events", Last_Event_ID="7.0")

    assert answer.status_code == 422
    assert "1 state events" in answer.json["detail"]


def test_an_unknown_job_has_no_stream(caller: Caller) -> None:
    assert caller.get("/v1/jobs/job_unknown/events").status_code == 404


def test_streams_are_bounded_so_that_others_are_still_answered(app: Flask, caller: Caller) -> None:
    services = app.extensions["penstock"]
    job_id = caller.submit()
    open_streams = [stream(caller, job_id) for _ in range(services.waiting_places.count)]
    for events in open_streams:
        next(events)
    answer = caller.get(f"/v1/jobs/{job_id}/events")

    assert (answer.status_code, answer.json["code"]) == (503, "service_unavailable")
    open_streams[0].close()
    assert next(stream(caller, job_id)).type == "job.queued"
    for events in open_streams:
        events.close()
    assert services.waiting_places.taken == 0


def test_streams_end_when_the_process_stops(app: Flask, caller: Caller) -> None:
    events = stream(caller, caller.submit())
    next(events)
    app.extensions["penstock"].stop_streams()

    assert list(events) == []


class MuteJournal(Journal):
    """A journal whose publications are lost on the way."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, publisher="mute")

    def _publish(self, message: object) -> None:
        pass


class InterruptedJournal(Journal):
    """A journal before whose first reading something happens."""

    def __init__(self, redis: Redis, happening: Callable[[], None]) -> None:
        super().__init__(redis, publisher="reader")
        self._happenings = [happening]

    def read(self, job_id: str, first_position: int = 0) -> list[JournalEntry]:
        while self._happenings:
            self._happenings.pop()()
        return super().read(job_id, first_position)
