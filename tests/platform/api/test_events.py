"""The tenant's feed: one order, without gap or repeat, whoever commits first and wherever a reader breaks off."""

import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from penstock.auth.models import ApiKey, Tenant
from penstock.db import Database
from penstock.events import live
from penstock.events import stream as feed_streams
from penstock.events.documents import FeedEventDocument
from penstock.events.live import FeedBroadcaster, Subscription
from penstock.events.models import FeedEvent
from penstock.events.services import FeedItem, items_since, place_committed
from penstock.events.stream import FeedStream
from penstock.jobs import services as jobs
from penstock.registry.models import Deployment
from sqlalchemy import event, func, select, update
from sqlalchemy.orm import Session

from tests.factories import make_tenant, submit_job
from tests.platform.api.conftest import Caller, Received, Worker, read_events

pytestmark = pytest.mark.usefixtures("deployment")


def ids(documents: list[Any]) -> list[str]:
    return [document["id"] for document in documents]


def feed(caller: Caller, after: str | None = None, limit: int = 100) -> list[Any]:
    """Every event after the cursor, page by page."""
    found: list[Any] = []
    more = True
    while more:
        page = caller.get(f"/v1/events?limit={limit}" + (f"&after={after}" if after is not None else "")).json
        found += page["data"]
        more, after = page["has_more"], page["next"]
    return found


def follow(caller: Caller, **headers: str) -> Generator[Received, None, None]:
    """The stream's events as the application produces them; closed with the generator."""
    response = caller.get("/v1/events", Accept="text/event-stream", **headers)
    assert response.status_code == 200, response.text
    assert response.mimetype == "text/event-stream"
    with closing(response):
        yield from read_events(response.response)


def take(events: Iterator[Received], count: int) -> list[Received]:
    return [next(events) for _ in range(count)]


def test_a_jobs_events_with_their_numbers_in_order(caller: Caller, worker: Worker) -> None:
    job_id = caller.submit()
    worker.claim()
    worker.finish()
    found = [FeedEventDocument.model_validate(document) for document in feed(caller)]
    assert [(e.id, e.type, e.event_number) for e in found] == [
        ("1", "job.queued", 1),
        ("2", "job.running", 2),
        ("3", "job.succeeded", 3),
    ]
    assert {e.job_id for e in found} == {job_id}
    assert [e.event_number for e in found] == [e["number"] for e in caller.get(f"/v1/jobs/{job_id}").json["timeline"]]


def test_pages_go_on_where_they_ended_now_and_later(caller: Caller) -> None:
    for _ in range(5):
        caller.submit()
    assert ids(feed(caller, limit=2)) == ["1", "2", "3", "4", "5"]
    end = caller.get("/v1/events").json["next"]
    assert caller.get(f"/v1/events?after={end}").json == {
        "object": "list", "data": [], "has_more": False, "next": "5",
    }  # fmt: skip
    caller.submit()
    assert ids(feed(caller, after=end)) == ["6"]
    assert feed(caller, after="now") == []


def test_an_empty_feed_has_a_cursor_too(caller: Caller) -> None:
    page = caller.get("/v1/events").json
    assert (page["data"], page["next"]) == ([], "0")
    caller.submit()
    assert ids(feed(caller, after=page["next"])) == ["1"]


@pytest.mark.parametrize("after", ["2", "-1", "x", "1.1", "9" * 30, "٣"])
def test_a_cursor_that_is_none_is_refused(caller: Caller, after: str) -> None:
    caller.submit()
    for headers in ({}, {"Accept": "text/event-stream"}):
        answer = caller.get(f"/v1/events?after={after}", **headers)
        assert (answer.status_code, answer.json["field"]) == (422, "after")


def test_each_tenant_counts_for_itself(caller: Caller, make_caller: Any) -> None:
    other = make_caller()
    caller.submit()
    other.submit()
    caller.submit()
    assert (ids(feed(caller)), ids(feed(other))) == (["1", "2"], ["1"])


def test_what_commits_late_comes_later_and_is_not_missed(caller: Caller, database: Database) -> None:
    caller.submit()  # makes the tenant's counter, for which two first submits would wait
    with Session(database.engine) as slow, slow.begin():
        late = submit_job(slow, slow.get_one(Tenant, caller.tenant_id)).id  # written first
        early = caller.submit()
        first = feed(caller, after="1")
        assert [document["job_id"] for document in first] == [early]
    second = feed(caller, after=first[-1]["id"])
    assert [document["job_id"] for document in second] == [late]
    assert ids(feed(caller)) == ["1", "2", "3"]


def test_writers_placers_and_a_reader_all_at_once(caller: Caller, database: Database, deployment: Deployment) -> None:
    with database.transaction() as session:
        tenant = make_tenant(session)
    written, stop = threading.Event(), threading.Event()

    def write() -> None:
        for _ in range(15):
            with database.transaction() as session:
                job = submit_job(session, tenant)
            with database.transaction() as session:
                jobs.cancel(session, tenant.id, job.id)

    def place() -> None:
        while not stop.is_set():
            with database.transaction() as session:
                place_committed(session)

    def read() -> None:
        position = 0
        while True:
            last = written.is_set()
            with database.transaction() as session:
                place_committed(session)
            with database.transaction() as session:
                found = items_since(session, {tenant.id: position}, 7)
            seen.extend(found)
            position = found[-1].position if found else position
            if last and not found and unplaced(database) == 0:
                return

    seen: list[FeedItem] = []
    writers = [threading.Thread(target=write) for _ in range(3)]
    others = [threading.Thread(target=place) for _ in range(2)]
    reader = threading.Thread(target=read)
    for thread in (*writers, *others, reader):
        thread.start()
    for thread in writers:
        thread.join()
    written.set()
    reader.join()
    stop.set()
    for thread in others:
        thread.join()
    assert [item.position for item in seen] == list(range(1, 91))
    assert len({(item.job_id, item.event_number) for item in seen}) == 90
    numbers: dict[str | None, list[int | None]] = {}
    for item in seen:
        numbers.setdefault(item.job_id, []).append(item.event_number)
    assert all(of_job == [1, 2] for of_job in numbers.values())


def unplaced(database: Database) -> int:
    with database.transaction() as session:
        return len(session.scalars(select(FeedEvent.id).where(FeedEvent.position.is_(None))).all())


def test_the_stream_tells_what_was_and_what_comes(caller: Caller, worker: Worker) -> None:
    job_id = caller.submit()
    with closing(follow(caller)) as events:
        (first,) = take(events, 1)
        assert (first.id, first.type, first.data["job_id"]) == ("1", "job.queued", job_id)
        worker.claim()
        worker.finish()
        assert [(e.id, e.type) for e in take(events, 2)] == [("2", "job.running"), ("3", "job.succeeded")]
    assert [e["id"] for e in feed(caller)] == ["1", "2", "3"]


def test_a_broken_stream_resumes_without_gap_or_repeat(caller: Caller) -> None:
    seen: list[Received] = []
    for length in (1, 3, 2, 5):
        for _ in range(length):
            caller.submit()
        headers = {"Last_Event_ID": seen[-1].id} if seen else {}
        with closing(follow(caller, **headers)) as events:
            seen += take(events, length - 1)
            caller.submit()
            seen += take(events, 1)
    with closing(follow(caller, Last_Event_ID=seen[-1].id)) as events:
        seen += take(events, 4)
    assert [e.id for e in seen] == [str(number) for number in range(1, 16)]
    assert [e.data for e in seen] == feed(caller)


def test_last_event_id_wins_and_now_begins_at_the_end(caller: Caller) -> None:
    caller.submit()
    caller.submit()
    response = caller.get("/v1/events?after=now", Accept="text/event-stream")
    with closing(response):
        events = read_events(response.response)
        threading.Timer(0.1, caller.submit).start()
        assert next(events).id == "3"
    response = caller.get("/v1/events?after=now", Accept="text/event-stream", Last_Event_ID="1")
    with closing(response):
        assert next(read_events(response.response)).id == "2"


def test_a_reader_that_falls_behind_misses_nothing(
    caller: Caller, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_BACKLOG", 3)
    broadcaster = FeedBroadcaster(database)
    stream = FeedStream(database, broadcaster, caller.tenant_id, 0).follow()
    assert next(stream) == []
    with broadcaster.subscribed(caller.tenant_id) as other:
        for _ in range(10):
            caller.submit()
        behind, heard = False, 0
        while not behind and heard < 10:
            news = other.take(10)
            behind, heard = news.behind, heard + len(news.items)
            threading.Event().wait(0.3)
        seen: list[int] = []
        while len(seen) < 10:
            seen += [item.position for item in next(stream)]
    assert seen == list(range(1, 11))
    stream.close()
    broadcaster.join()


def test_who_falls_behind_is_told_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_BACKLOG", 2)
    subscription = Subscription()
    items: list[Any] = ["a", "b", "c"]
    subscription.offer(items[:2])
    subscription.offer(items[2:])
    assert subscription.take(0) == live.News([], behind=True)
    assert subscription.take(0) == live.News([], behind=False)
    subscription.offer(items[2:])
    assert subscription.take(0) == live.News(["c"], behind=False)  # type: ignore[list-item]  # any item will do


def statements_of_a_look(database: Database, broadcaster: FeedBroadcaster) -> int:
    """How many statements one look at the feed takes."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        broadcaster._poll()
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    return len(seen)


def test_many_readers_of_many_tenants_cost_one_query(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeedBroadcaster, "_start", lambda _self: None)  # the test looks, so that nobody else does
    broadcaster = FeedBroadcaster(database)
    with database.transaction() as session:
        tenants = [make_tenant(session) for _ in range(5)]
    with ExitStack() as stack:
        stack.enter_context(broadcaster.subscribed(tenants[0].id))
        one = statements_of_a_look(database, broadcaster)
        readers = [stack.enter_context(broadcaster.subscribed(tenant.id)) for tenant in tenants for _ in range(20)]
        with database.transaction() as session:
            for tenant in tenants:
                submit_job(session, tenant)
        assert statements_of_a_look(database, broadcaster) == one == 3
        for reader in readers:
            assert [item.position for item in reader.take(0).items] == [1]
        broadcaster._poll()
        assert all(reader.take(0).items == [] for reader in readers)


def test_what_a_reader_found_in_the_table_is_not_told_again(
    caller: Caller, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeedBroadcaster, "_start", lambda _self: None)
    broadcaster = FeedBroadcaster(database)
    with broadcaster.subscribed(caller.tenant_id):
        caller.submit()
        assert ids(feed(caller)) == ["1"]
        stream = FeedStream(database, broadcaster, caller.tenant_id, 0).follow()
        assert [item.position for item in next(stream)] == [1]
        broadcaster._poll()  # hands it to both, of whom the later has had it
        caller.submit()
        broadcaster._poll()
        assert [item.position for item in next(stream)] == [2]
        stream.close()


def test_the_thread_goes_with_its_last_reader_and_comes_with_the_next(caller: Caller, database: Database) -> None:
    broadcaster = FeedBroadcaster(database)
    for position in (1, 2):
        with broadcaster.subscribed(caller.tenant_id) as subscription:
            caller.submit()
            assert [item.position for item in subscription.take(10).items] == [position]
        broadcaster.join()
        assert broadcaster._thread is None


@pytest.mark.parametrize("how", ["the key is revoked", "the tenant is suspended"])
def test_a_stream_ends_with_the_right_to_read_it(
    app: Flask, caller: Caller, database: Database, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(app.extensions["penstock"].keys, "_seconds", 0.0)
    monkeypatch.setattr(feed_streams, "_LOOK_SECONDS", 0.05)
    caller.submit()
    events = follow(caller)
    assert next(events).id == "1"
    with database.transaction() as session:
        if how == "the key is revoked":
            session.execute(update(ApiKey).where(ApiKey.tenant_id == caller.tenant_id).values(revoked_at=func.now()))
        else:
            session.get_one(Tenant, caller.tenant_id).suspended_at = datetime.now(UTC)
    assert [event.id for event in events] == []


def test_streams_end_with_the_process(app: Flask, caller: Caller) -> None:
    caller.submit()
    events = follow(caller)
    assert next(events).id == "1"
    app.extensions["penstock"].stop_streams()
    assert list(events) == []
    assert app.extensions["penstock"].waiting_places.taken == 0
