"""The client for asyncio: the calls of `Client`, awaited.

What each call asks for and makes of the answer is written once, in the classes of `Client`. Here they run with a
stand-in for their transport, which tells what would be asked; `AsyncTransport` asks it, and the answer goes back in.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from penstock.client.async_transport import AsyncTransport
from penstock.client.batches import Batches
from penstock.client.bulk import Bulk
from penstock.client.config import connection
from penstock.client.endpoints import Webhooks
from penstock.client.files import Files
from penstock.client.house import House
from penstock.client.jobs import Jobs
from penstock.client.keys import Keys
from penstock.client.operation import Operation
from penstock.client.patience import Patience
from penstock.client.reading import Asking, Pages, Reader, Upload, Waiting
from penstock.client.replays import Replays
from penstock.client.rollouts import Rollouts

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Calls = TypeVar("Calls")


class _Asked(BaseException):
    """What a call asks the transport for: the method of that name, with these arguments."""

    def __init__(self, name: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        super().__init__(name)
        self._name, self._arguments, self._options = name, arguments, options

    def of(self, transport: AsyncTransport) -> Any:
        """Ask it: what is to be awaited, or iterated over."""
        return getattr(transport, self._name)(*self._arguments, **self._options)


class _Probe:
    """Stands in for a transport: gives the answers that there are, and raises what is asked beyond them."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self._answers = iter(answers)

    def request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._answer("request", method, path, **options)
        return answer

    def poll(self, waiting: Waiting[T], patience: Patience) -> T:
        answer: T = self._answer("poll", waiting, patience)
        return answer

    def pages(self, pages: Pages[T]) -> Iterator[T]:
        raise _Asked("pages", (pages,), {})

    def read(self, reader: Reader[T], patience: Patience) -> Iterator[T]:
        raise _Asked("read", (reader, patience), {})

    def follow(self, waiting: Waiting[T], patience: Patience) -> Iterator[T]:
        raise _Asked("follow", (waiting, patience), {})

    def upload(self, upload: Upload) -> dict[str, Any]:
        answer: dict[str, Any] = self._answer("upload", upload)
        return answer

    def fetch(self, path: str) -> bytes:
        answer: bytes = self._answer("fetch", path)
        return answer

    def save(self, path: str, target: Path) -> None:
        self._answer("save", path, target)

    def _answer(self, name: str, *arguments: Any, **options: Any) -> Any:
        for answer in self._answers:
            return answer
        raise _Asked(name, arguments, options)


class _Awaited(Generic[Calls]):
    """Calls that are written elsewhere. `make` makes the object that has them, with a transport of its own."""

    def __init__(self, transport: AsyncTransport, make: Callable[[Asking], Calls]) -> None:
        self._transport, self._make = transport, make

    async def _ask(self, call: Callable[[Calls], R]) -> R:
        answers: list[Any] = []
        while True:
            try:
                return call(self._make(_Probe(answers)))
            except _Asked as asked:
                answers.append(await asked.of(self._transport))

    def _iterate(self, call: Callable[[Calls], Iterator[T]]) -> AsyncIterator[T]:
        try:
            call(self._make(_Probe(())))
        except _Asked as asked:
            items: AsyncIterator[T] = asked.of(self._transport)
            return items
        raise AssertionError("an iterator is made by the transport")


def _awaited(
    call: Callable[Concatenate[Calls, P], R],
) -> Callable[Concatenate[_Awaited[Calls], P], Coroutine[Any, Any, R]]:
    @wraps(call)
    async def ask(self: _Awaited[Calls], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._ask(lambda calls: call(calls, *args, **kwargs))

    return ask


def _iterated(
    call: Callable[Concatenate[Calls, P], Iterator[T]],
) -> Callable[Concatenate[_Awaited[Calls], P], AsyncIterator[T]]:
    @wraps(call)
    def iterate(self: _Awaited[Calls], /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self._iterate(lambda calls: call(calls, *args, **kwargs))

    return iterate


class AsyncJobs(_Awaited[Jobs]):
    """`Jobs`, awaited."""

    submit = _awaited(Jobs.submit)
    score = _awaited(Jobs.score)
    get = _awaited(Jobs.get)
    list = _iterated(Jobs.list)
    cancel = _awaited(Jobs.cancel)
    delete = _awaited(Jobs.delete)
    retry = _awaited(Jobs.retry)
    wait = _awaited(Jobs.wait)
    stream = _iterated(Jobs.stream)
    give_feedback = _awaited(Jobs.give_feedback)
    feedback = _iterated(Jobs.feedback)


class AsyncWebhooks(_Awaited[Webhooks]):
    """`Webhooks`, awaited."""

    create = _awaited(Webhooks.create)
    list = _awaited(Webhooks.list)
    get = _awaited(Webhooks.get)
    change = _awaited(Webhooks.change)
    delete = _awaited(Webhooks.delete)
    rotate_secret = _awaited(Webhooks.rotate_secret)
    test = _awaited(Webhooks.test)
    deliveries = _iterated(Webhooks.deliveries)
    delivery = _awaited(Webhooks.delivery)
    replay = _awaited(Webhooks.replay)
    replay_since = _awaited(Webhooks.replay_since)


class AsyncKeys(_Awaited[Keys]):
    """`Keys`, awaited."""

    create = _awaited(Keys.create)
    list = _awaited(Keys.list)
    get = _awaited(Keys.get)
    revoke = _awaited(Keys.revoke)


class AsyncFiles(_Awaited[Files]):
    """`Files`, awaited."""

    upload = _awaited(Files.upload)
    get = _awaited(Files.get)
    list = _iterated(Files.list)
    delete = _awaited(Files.delete)
    read = _awaited(Files.read)
    download = _awaited(Files.download)


class AsyncBatches(_Awaited[Batches]):
    """`Batches`, awaited."""

    submit = _awaited(Batches.submit)
    create = _awaited(Batches.create)
    get = _awaited(Batches.get)
    list = _iterated(Batches.list)
    results = _iterated(Batches.results)
    change = _awaited(Batches.change)
    pause = _awaited(Batches.pause)
    resume = _awaited(Batches.resume)
    cancel = _awaited(Batches.cancel)
    retry = _awaited(Batches.retry)
    wait = _awaited(Batches.wait)
    follow = _iterated(Batches.follow)


class AsyncBulk(_Awaited[Bulk]):
    """`Bulk`, awaited."""

    begin = _awaited(Bulk.begin)
    get = _awaited(Bulk.get)
    list = _iterated(Bulk.list)
    cancel = _awaited(Bulk.cancel)
    follow = _iterated(Bulk.follow)


class AsyncOperation(_Awaited[Operation]):
    """`Operation`, awaited."""

    workers = _awaited(Operation.workers)
    drain_worker = _awaited(Operation.drain_worker)
    deployments = _awaited(Operation.deployments)
    deployment = _awaited(Operation.deployment)
    place_deployment = _awaited(Operation.place_deployment)
    dead_letter_groups = _awaited(Operation.dead_letter_groups)
    dead_letters = _iterated(Operation.dead_letters)
    dead_letter = _awaited(Operation.dead_letter)
    replay_dead_letter = _awaited(Operation.replay_dead_letter)
    discard_dead_letter = _awaited(Operation.discard_dead_letter)
    settle_dead_letters = _awaited(Operation.settle_dead_letters)


class AsyncReplays(_Awaited[Replays]):
    """`Replays`, awaited."""

    begin = _awaited(Replays.begin)
    get = _awaited(Replays.get)
    list = _iterated(Replays.list)
    report = _awaited(Replays.report)
    cancel = _awaited(Replays.cancel)
    follow = _iterated(Replays.follow)


class AsyncRollouts(_Awaited[Rollouts]):
    """`Rollouts`, awaited."""

    start = _awaited(Rollouts.start)
    get = _awaited(Rollouts.get)
    list = _iterated(Rollouts.list)
    follow = _iterated(Rollouts.follow)
    pause = _awaited(Rollouts.pause)
    resume = _awaited(Rollouts.resume)
    abort = _awaited(Rollouts.abort)
    roll_back = _awaited(Rollouts.roll_back)
    promote = _awaited(Rollouts.promote)
    decisions = _iterated(Rollouts.decisions)
    jobs = _iterated(Rollouts.jobs)
    flips = _awaited(Rollouts.flips)
    policy = _awaited(Rollouts.policy)
    set_policy = _awaited(Rollouts.set_policy)
    simulate = _awaited(Rollouts.simulate)


class AsyncClient(_Awaited[House]):
    """Talks to a Penstock server from one event loop; close it, or use it in an `async with` block.

    Everything is as in `Client`, but that calls are awaited and iterators are asynchronous.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        max_retries: int = 5,
        patience: float = 120.0,
    ) -> None:
        transport = AsyncTransport(connection(url, api_key), timeout=timeout, max_retries=max_retries)
        super().__init__(transport, lambda asking: House(asking, patience_seconds=patience))
        self.url = transport.url
        self.jobs = AsyncJobs(transport, lambda asking: Jobs(asking, patience_seconds=patience))
        self.webhooks = AsyncWebhooks(transport, Webhooks)
        self.bulk = AsyncBulk(transport, lambda asking: Bulk(asking, patience_seconds=patience))
        self.operation = AsyncOperation(transport, Operation)
        self.replays = AsyncReplays(transport, lambda asking: Replays(asking, patience_seconds=patience))
        self.rollouts = AsyncRollouts(transport, lambda asking: Rollouts(asking, patience_seconds=patience))
        self.keys = AsyncKeys(transport, Keys)
        self.files = AsyncFiles(transport, Files)
        self.batches = AsyncBatches(transport, lambda asking: Batches(asking, Files(asking), patience_seconds=patience))

    models = _awaited(House.models)
    quantize = _awaited(House.quantize)
    evaluate = _awaited(House.evaluate)
    calibration = _awaited(House.calibration)
    events = _iterated(House.events)
    follow_events = _iterated(House.follow_events)
    usage = _iterated(House.usage)
    budgets = _awaited(House.budgets)
    quotas = _awaited(House.quotas)
    webhook_secret = _awaited(House.webhook_secret)

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
