"""Penstock beside the plain pattern, on the same model and prompts: jobs in a second, and how long one takes."""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from penstock.embedded.ports import choose

from bench.platform_parts.clients import Caller, Latency, timed
from bench.platform_parts.house import DEMO_MODEL, MODEL_NAME, REAL_WORKER, ROOT, House, until
from bench.platform_parts.submits import SAMPLE

POLL_SECONDS: Final = 0.05
_MAX_TOKENS: Final = 128  # the demo's answers end by themselves before it
_POOLS: Final = {"solo": 1, "threads": 4}
Generate = Callable[[str], str]
Connect = Callable[[ExitStack], Generate]


@dataclass(frozen=True)
class Crowd:
    """So many clients, each of which asks for so many jobs, one after the other."""

    clients: int
    jobs_each: int


@dataclass(frozen=True)
class Served:
    """What a crowd got. `texts` are by prompt, to see that both sides do the same work."""

    per_second: float
    latency_ms: Latency
    texts: dict[str, str]


def measure_peers(house: House, redis_url: str, crowds: tuple[Crowd, ...]) -> dict[str, Any]:
    """Ours, then theirs with each pool; the ratios are to the better of these."""
    with house.front(), house.worker(*REAL_WORKER):
        ours = [_serve(crowd, partial(_ours, house)) for crowd in crowds]
    theirs: dict[str, list[Served]] = {}
    for pool, concurrency in _POOLS.items():
        with _plain(redis_url, pool, concurrency) as port:
            theirs[pool] = [_serve(crowd, partial(_theirs, port)) for crowd in crowds]
    return {f"{crowd.clients} clients": _compare(nth, ours, theirs) for nth, crowd in enumerate(crowds)}


def _compare(nth: int, ours: list[Served], theirs: dict[str, list[Served]]) -> dict[str, Any]:
    best = max((each[nth] for each in theirs.values()), key=lambda served: served.per_second)
    same = sum(best.texts[prompt] == text for prompt, text in ours[nth].texts.items())
    return {
        "penstock": _record(ours[nth]),
        **{f"plain, {pool}": _record(each[nth]) for pool, each in theirs.items()},
        "jobs_over_plain": round(ours[nth].per_second / best.per_second, 2),
        "p50_over_plain": round(ours[nth].latency_ms.p50 / best.latency_ms.p50, 3),
        "same_texts": round(same / len(ours[nth].texts), 3),
    }


def _record(served: Served) -> dict[str, Any]:
    return {"jobs_per_second": served.per_second, "latency_ms": served.latency_ms}


def _serve(crowd: Crowd, connect: Connect) -> Served:
    """Each client waits for a job's text before it asks for the next."""
    texts: dict[str, str] = {}

    def one(number: int) -> list[float]:
        with ExitStack() as open_:
            generate = connect(open_)
            prompts = [prompt_of(number * crowd.jobs_each + at) for at in range(crowd.jobs_each)]

            def ask(prompt: str) -> None:
                texts[prompt] = generate(prompt)

            return [timed(ask, prompt) for prompt in prompts]

    with ExitStack() as open_:
        connect(open_)(prompt_of(-1))  # warms up
    began = time.perf_counter()
    with ThreadPoolExecutor(crowd.clients) as pool:
        seconds = [one for many in pool.map(one, range(crowd.clients)) for one in many]
    wall = time.perf_counter() - began
    return Served(round(len(seconds) / wall, 2), Latency.of(seconds), texts)


def prompt_of(number: int) -> str:
    """An invoice of its own."""
    return f"{SAMPLE}note {number}\n"


def _ours(house: House, open_: ExitStack) -> Generate:
    """Submit and wait, in one request."""
    caller = open_.enter_context(Caller(house))

    def generate(prompt: str) -> str:
        params = {"max_tokens": _MAX_TOKENS, "temperature": 0.0}
        body = {"model": MODEL_NAME, "input": {"messages": _chat(prompt)}, "params": params}
        job = caller.submit(json.dumps(body).encode(), wait=60)
        assert job["status"] == "succeeded", job
        return str(job["output"]["choices"][0]["text"])

    return generate


def _theirs(port: int, open_: ExitStack) -> Generate:
    """Submit, then ask for the result until it is there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    open_.callback(connection.close)

    def ask(method: str, path: str, body: object = None) -> Any:
        connection.request(
            method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"}
        )
        return json.load(connection.getresponse())

    def generate(prompt: str) -> str:
        task = ask("POST", "/generate", {"messages": _chat(prompt), "max_tokens": _MAX_TOKENS})["id"]
        while (found := ask("GET", f"/result/{task}"))["state"] not in ("SUCCESS", "FAILURE"):
            time.sleep(POLL_SECONDS)
        assert found["state"] == "SUCCESS", found
        return str(found["text"])

    return generate


def _chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


@contextmanager
def _plain(redis_url: str, pool: str, concurrency: int) -> Iterator[int]:
    """The peer's two processes; gives the web's port."""
    port, module = choose(None, None, ""), "bench.platform_parts.plain_peer"
    worker = [module, redis_url, str(DEMO_MODEL), "--pool", pool, "--concurrency", str(concurrency)]
    bind = ["--bind", f"127.0.0.1:{port}", "--log-level", "warning"]
    web = ["gunicorn", "--threads", "32", *bind, f"{module}:web('{redis_url}')"]
    processes = [subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT) for command in (worker, web)]
    try:
        until(lambda: _listens(port), "the peer's web process")
        yield port
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _listens(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 404
    except OSError:
        return False
    finally:
        connection.close()
