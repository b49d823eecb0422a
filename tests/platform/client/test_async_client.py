"""The asynchronous client: the calls of the other one, its retries and its streams, on one event loop."""

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from penstock import AsyncClient, Client
from penstock.client import (
    Batch,
    BatchResult,
    ConnectionFailed,
    Event,
    File,
    JobState,
    PenstockError,
    StateEvent,
    TokenEvent,
    UnexpectedAnswer,
    WaitTimedOut,
    backoff,
)
from penstock.client.async_client import (
    AsyncBatches,
    AsyncBulk,
    AsyncFiles,
    AsyncJobs,
    AsyncKeys,
    AsyncOperation,
    AsyncReplays,
    AsyncRollouts,
    AsyncWebhooks,
)
from penstock.client.batches import Batches
from penstock.client.bulk import Bulk
from penstock.client.endpoints import Webhooks
from penstock.client.files import Files
from penstock.client.jobs import Jobs
from penstock.client.keys import Keys
from penstock.client.operation import Operation
from penstock.client.replays import Replays
from penstock.client.rollouts import Rollouts
from penstock.db import Database
from penstock.errors import NotFound, QuotaExceeded, ValidationFailed
from penstock.settings import Settings
from redis import Redis

from tests.conftest import ROOT
from tests.platform.api.conftest import Worker
from tests.platform.batches.conftest import as_jsonl, native
from tests.platform.batches.serving import served, workshop_of
from tests.platform.client.live import CuttingProxy
from tests.platform.client.real import api_key, app, connected, url, worker
from tests.platform.client.server import (
    FINISHED,
    JOB,
    WHOLE_STREAM,
    Misbehaving,
    Reply,
    as_json,
    misbehaving,
    problem,
    stream,
)

__all__ = ["api_key", "app", "connected", "url", "worker"]  # fixtures

T = TypeVar("T")
PARTS = [
    (Client, AsyncClient),
    (Jobs, AsyncJobs),
    (Webhooks, AsyncWebhooks),
    (Keys, AsyncKeys),
    (Files, AsyncFiles),
    (Batches, AsyncBatches),
    (Bulk, AsyncBulk),
    (Operation, AsyncOperation),
    (Replays, AsyncReplays),
    (Rollouts, AsyncRollouts),
]
IDS = ["1.0", "2.0", "2.1", "2.2", "2.3", "2.4", "3.4"]
HANG_UP = Reply(hang_up=True)
Run = Callable[[Callable[[AsyncClient], Awaitable[T]]], T]


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with misbehaving() as running:
        yield running


@pytest.fixture
def run(server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> Run[Any]:
    """Runs something with a client that tries again at once."""
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.001)
    return lambda work: with_client(server.url, work)


def run_aside(work: Coroutine[Any, Any, T]) -> T:
    """In a thread of its own: a browser's driver, once started in this process, keeps a loop running in the first."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def with_client(url: str, work: Callable[[AsyncClient], Awaitable[T]], key: str = "psk_x", **options: Any) -> T:
    async def main() -> T:
        async with AsyncClient(url, key, **({"max_retries": 3, "patience": 5.0} | options)) as client:
            return await work(client)

    return run_aside(main())


async def everything(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


def public(kind: type) -> dict[str, Any]:
    return {name: call for name, call in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_both_clients_have_the_same_parts() -> None:
    with Client("http://127.0.0.1:1", "psk_x") as client:
        mine = {name: type(part) for name, part in vars(client).items() if not name.startswith("_")}
    theirs = {name: type(part) for name, part in vars(AsyncClient("http://127.0.0.1:1", "psk_x")).items()}
    assert mine.keys() == {name for name in theirs if not name.startswith("_")}
    assert {(kind, theirs[name]) for name, kind in mine.items() if kind is not str} == set(PARTS[1:])


@pytest.mark.parametrize(("blocking", "awaited"), PARTS)
def test_both_clients_have_the_same_calls(blocking: type, awaited: type) -> None:
    calls, theirs = public(blocking), public(awaited)

    assert set(calls) == set(theirs)
    for name, call in calls.items():
        assert inspect.signature(call).parameters == inspect.signature(theirs[name]).parameters, name
        assert theirs[name].__doc__ == call.__doc__
        iterates = "Iterator" in str(inspect.signature(call).return_annotation)
        assert inspect.iscoroutinefunction(theirs[name]) != iterates, name
    assert inspect.signature(Client) == inspect.signature(AsyncClient)


def test_every_call_says_what_it_says_to_the_other_client(server: Misbehaving, run: Run[Any]) -> None:
    server.always = as_json(JOB | {"object": "job"})
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    given: dict[str, Any] = {
        "model": "tiny", "prompt": "x", "params": {"temperature": 0.0}, "deadline": moment, "token_budget": 9,
        "tags": ["a"], "metadata": {"k": "v"}, "idempotency_key": "once",
    }  # fmt: skip
    with Client(server.url, "psk_x") as client:
        client.jobs.submit(**given)
        client.jobs.cancel("job_01")
        client.jobs.retry("job_01", idempotency_key="twice")
        client.jobs.get("job_01")

    async def same(client: AsyncClient) -> None:
        assert (await client.jobs.submit(**given)).id == "job_01"
        await client.jobs.cancel("job_01")
        await client.jobs.retry("job_01", idempotency_key="twice")
        await client.jobs.get("job_01")

    run(same)
    half = len(server.asked) // 2
    assert half == 4
    assert server.asked[half:] == server.asked[:half]


def test_a_submit_that_was_refused_for_now_is_repeated_with_its_key(server: Misbehaving, run: Run[Any]) -> None:
    server.replies.extend([problem("quota_exceeded", 429), HANG_UP, as_json(JOB, 202)])
    run(lambda client: client.jobs.submit(model="tiny", prompt="x"))
    first, *others = server.asked
    assert len(others) == 2
    assert {one.headers["idempotency-key"] for one in others} == {first.headers["idempotency-key"]}
    assert {one.body for one in others} == {first.body}


def test_what_cannot_be_repeated_safely_is_not(server: Misbehaving, run: Run[Any]) -> None:
    server.replies.append(HANG_UP)
    with pytest.raises(ConnectionFailed, match="is the server running"):
        run(lambda client: client.jobs.cancel("job_01"))
    assert len(server.asked) == 1
    server.replies.append(problem("quota_exceeded", 429, headers={"Retry-After": "3600"}))
    with pytest.raises(QuotaExceeded):
        run(lambda client: client.jobs.get("job_01"))
    assert len(server.asked) == 2


def test_pages_are_fetched_as_they_are_read(server: Misbehaving, run: Run[Any]) -> None:
    server.replies.append(as_json({"data": [JOB], "has_more": True, "next": "job_01"}))
    server.replies.append(as_json({"data": [JOB | {"id": "job_02"}], "has_more": False, "next": None}))

    async def read(client: AsyncClient) -> list[str]:
        jobs = client.jobs.list(status=[JobState.QUEUED], page_size=1)
        assert server.asked == []
        first = await anext(jobs)
        assert len(server.asked) == 1
        return [first.id, *[job.id async for job in jobs]]

    assert run(read) == ["job_01", "job_02"]
    assert server.asked[1].path == "/v1/jobs?status=queued&limit=1&after=job_01"


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("after", range(len(WHOLE_STREAM)))
def test_a_connection_that_breaks_anywhere_loses_and_repeats_nothing(
    server: Misbehaving, run: Run[Any], after: int, reset: bool
) -> None:
    half = WHOLE_STREAM[after][: len(WHOLE_STREAM[after]) // 2]
    server.replies.append(stream("".join(WHOLE_STREAM[:after]) + half, cut=reset))
    server.replies.append(problem("service_unavailable", 503))
    server.replies.append(stream("".join(WHOLE_STREAM[max(after - 1, 0) :])))
    lost: list[PenstockError] = []

    events = run(lambda client: everything(client.jobs.stream("job_01", on_lost=lost.append)))
    assert [event.id for event in events] == IDS
    assert server.asked[2].headers.get("last-event-id") == (IDS[after - 1] if after else None)
    assert len(lost) == 2


def test_what_a_server_leaves_out_or_refuses_is_an_error(server: Misbehaving, run: Run[Any]) -> None:
    server.replies.append(stream("".join(WHOLE_STREAM[:3] + WHOLE_STREAM[4:])))
    with pytest.raises(UnexpectedAnswer, match=r"from 2\.1 to 2\.3"):
        run(lambda client: everything(client.jobs.stream("job_01")))
    server.replies.append(Reply(200, {"Content-Type": "text/html"}, b"<html>log in first"))
    with pytest.raises(UnexpectedAnswer, match="text/html"):
        run(lambda client: everything(client.jobs.stream("job_01")))
    with pytest.raises(NotFound):
        run(lambda client: everything(client.jobs.stream("job_01")))
    with pytest.raises(ValidationFailed, match=r"3\.57"):
        run(lambda client: everything(client.jobs.stream("job_01", "nonsense")))
    server.replies.append(Reply(204, body=b""))
    assert run(lambda client: everything(client.jobs.stream("job_01", "3.4"))) == []


def test_the_feed_begins_where_it_was_asked_to_and_goes_on(server: Misbehaving, run: Run[Any]) -> None:
    def event(number: int) -> str:
        document = (
            f'{{"id": "{number}", "type": "job.queued", "job_id": "job_01", "event_number": 1, "data": {{}}, '
            '"created_at": "2026-11-21T10:00:00Z"}'
        )
        return f"id: {number}\nevent: job.queued\ndata: {document}\n\n"

    server.replies.extend([as_json({"data": [], "has_more": False, "next": "7"}), stream(event(8), cut=True)])
    server.replies.append(stream(event(9)))

    async def read(client: AsyncClient) -> list[str]:
        feed = client.follow_events("now")
        return [(await anext(feed)).id, (await anext(feed)).id]

    assert run(read) == ["8", "9"]
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "7", "8"]


def test_wait_bears_outages_and_gives_up_in_time(server: Misbehaving, run: Run[Any]) -> None:
    server.replies.extend([as_json(JOB), *[HANG_UP] * 6, as_json(FINISHED)])
    assert run(lambda client: client.jobs.wait("job_01")).finished
    server.always = as_json(JOB)
    with pytest.raises(WaitTimedOut, match=r"queued after 0\.01 seconds") as late:
        run(lambda client: client.jobs.wait("job_01", timeout=0.01))
    assert late.value.extra["job"].id == "job_01"


@pytest.mark.timeout(60)
def test_many_jobs_are_followed_at_once_through_cut_connections(
    connected: Client, worker: Worker, api_key: str
) -> None:
    words = [f"word-{number} " for number in range(40)]
    lost: dict[int, list[PenstockError]] = {number: [] for number in range(5)}

    def work() -> None:
        worker.claim()
        worker.write(*words)
        worker.finish()

    async def follow(client: AsyncClient, number: int, begun: asyncio.Barrier) -> list[Event]:
        job = await client.jobs.submit(model="tiny", prompt=f"hello {number}")
        events = client.jobs.stream(job.id, on_lost=lost[number].append)
        first = await anext(events)
        await begun.wait()
        return [first, *await everything(events)]

    async def all_of_them(client: AsyncClient) -> list[list[Event]]:
        begun = asyncio.Barrier(6)
        async with asyncio.TaskGroup() as group:
            following = [group.create_task(follow(client, number, begun)) for number in lost]
            await begun.wait()
            for _ in following:
                await asyncio.to_thread(work)
        return [task.result() for task in following]

    with CuttingProxy(int(connected.url.rsplit(":", 1)[1]), budget=6000) as proxy:
        told = with_client(proxy.url, all_of_them, api_key, patience=30.0, max_retries=20)
    for events in told:
        assert "".join(event.text for event in events if isinstance(event, TokenEvent)) == "".join(words)
        assert isinstance(events[-1], StateEvent)
        assert events[-1].final
    assert all(lost.values()), "each of them was cut"


def test_the_example_of_the_page_runs(
    connected: Client, worker: Worker, api_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/client.md").read_text()
    (example,) = re.findall(r"## asyncio\n.*?```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setenv("PENSTOCK_URL", connected.url)
    monkeypatch.setenv("PENSTOCK_API_KEY", api_key)
    scope: dict[str, Any] = {"TokenEvent": TokenEvent}
    exec(example.replace("invoice-extractor", "tiny"), scope)

    async def main() -> str:
        answering = asyncio.create_task(scope["answer"]("hello"))
        async with AsyncClient() as client:
            while not [job async for job in client.jobs.list()]:
                await asyncio.sleep(0)
        await asyncio.to_thread(_serve, worker)
        said: str = await answering
        return said

    assert run_aside(main()) == "Hi there"


def _serve(worker: Worker) -> None:
    worker.claim()
    worker.write("Hi", " there")
    worker.finish()


def test_a_file_from_upload_to_its_end(connected: Client, api_key: str, tmp_path: Path) -> None:
    source = tmp_path / "lines.jsonl"
    source.write_bytes(bytes(range(256)) * 3000)

    async def life(client: AsyncClient) -> File:
        made = await client.files.upload(source, expires_seconds=3600)
        assert await client.files.get(made.id) == made
        assert await everything(client.files.list(page_size=1)) == [made]
        assert await client.files.read(made.id) == source.read_bytes()
        return made

    made = with_client(connected.url, life, api_key)
    assert (made.filename, made.bytes, made.purpose) == ("lines.jsonl", 768_000, "batch")

    async def through_cuts(client: AsyncClient) -> None:
        await client.files.download(made.id, tmp_path / "copy")
        await client.files.delete(made.id)

    with CuttingProxy(int(connected.url.rsplit(":", 1)[1]), budget=300_000, cuts=2) as proxy:
        with_client(proxy.url, through_cuts, api_key)
        assert proxy.connections >= 3
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    with pytest.raises(NotFound):
        connected.files.read(made.id)


def test_a_batch_from_submit_to_its_end(
    connected: Client,
    api_key: str,
    worker: Worker,
    settings: Settings,
    database: Database,
    redis: Redis,
    tmp_path: Path,
) -> None:
    source = tmp_path / "lines.jsonl"
    source.write_bytes(as_jsonl([native(1), native(2, "fail"), native(3)]))

    async def begin(client: AsyncClient) -> Batch:
        batch = await client.batches.submit(source, priority=2)
        with pytest.raises(WaitTimedOut, match="goes on"):
            await client.batches.wait(batch.id, timeout=0.1)
        await client.batches.pause(batch.id)
        await client.batches.resume(batch.id)
        return await client.batches.change(batch.id, priority=5)

    async def end(client: AsyncClient) -> tuple[list[Batch], list[BatchResult]]:
        followed = await everything(client.batches.follow(batch.id))
        assert (await client.batches.wait(batch.id)).finished
        again = await client.batches.retry(batch.id, custom_ids=["id-2"])
        assert (await client.batches.wait(again.id, timeout=60)).lines.failed == 1
        listed = await everything(client.batches.list(page_size=1))
        assert [each.id for each in listed] == [again.id, batch.id]
        return followed, await everything(client.batches.results(batch.id, after=1))

    batch = with_client(connected.url, begin, api_key)
    with served(workshop_of(settings, database, redis), worker):
        followed, results = with_client(connected.url, end, api_key)
    assert (batch.status, batch.priority) == ("validating", 5)
    assert (followed[-1].status, followed[-1].lines.succeeded, followed[-1].lines.failed) == ("completed", 2, 1)
    assert len(results) == 2
