"""The portal's small parts: assets, words, the waterfall, the curl command."""

import ast
import hashlib
import json
import re
import shlex
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from penstock.jobs.models import Job, JobRun
from penstock.portal import wording
from penstock.portal.assets import Assets, web_folder
from penstock.portal.snippets import as_curl, as_python, request_body
from penstock.portal.timeline import Phase, waterfall
from penstock.portal.wording import duration

ROOT = Path(__file__).parents[3]
START = datetime(2030, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_every_file_by_others_is_the_one_that_is_listed() -> None:
    listed = re.findall(
        r"^\| `([^`]+)` \| \S+ \| \S+ \| (\d+) \| `([0-9a-f]{64})` \|$",
        (ROOT / "web/static/vendor/VENDORED.md").read_text(),
        re.MULTILINE,
    )
    for path, size, digest in listed:
        data = (ROOT / path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (int(size), digest), path
    here = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "web/static/vendor").iterdir() if path.suffix != ".md"
    }
    assert here == {path for path, _, _ in listed if path.startswith("web/")}


def test_assets_are_kept_for_a_year_under_an_address_of_their_content(app: Flask) -> None:
    client = app.test_client()
    page = client.get("/sign-in").text
    addresses = re.findall(r'(?:href|src)="(/assets/[^"]+)"', page)
    assert len(addresses) >= 5
    for address in addresses:
        answer = client.get(address)
        assert answer.status_code == 200, address
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    stale = client.get("/assets/0000000000000000/portal.css")
    assert stale.headers["Cache-Control"] == "no-cache"
    assert client.get("/assets/0000000000000000/none.css").status_code == 404
    assert client.get("/assets/0/..%2f..%2fvendor.py").status_code == 404


def test_assets_are_sent_compressed_to_those_who_take_it(app: Flask) -> None:
    client = app.test_client()
    plain = client.get("/assets/x/portal.css")
    packed = client.get("/assets/x/portal.css", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
    assert len(packed.data) < len(plain.data) / 3


def test_a_changed_file_changes_every_address(tmp_path: Path) -> None:
    (tmp_path / "css").mkdir()
    (tmp_path / "css/1.css").write_text("a{}")
    before = Assets(tmp_path).address("portal.css")
    assert Assets(tmp_path).address("portal.css") == before
    (tmp_path / "css/2.css").write_text("b{}")
    assert Assets(tmp_path).address("portal.css") != before
    with pytest.raises(KeyError):
        Assets(tmp_path).address("missing.js")


def test_first_load_is_within_its_budget() -> None:
    assets = Assets(web_folder() / "static")
    scripts = [f"js/{path.name}" for path in (web_folder() / "static/js").iterdir()]
    names = [
        "portal.css",
        "favicon.svg",
        "vendor/htmx.min.js",
        "vendor/geist.woff2",
        "vendor/geist-mono.woff2",
        *scripts,
    ]
    total = 0
    for name in names:
        asset = assets.get(name)
        assert asset is not None, name
        total += len(asset.gzipped or asset.body)
    assert total < 120_000


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"), (0.0042, "4 ms"), (1.239, "1.24 s"), (59.99, "59.99 s"), (61, "1 m 01 s"), (3600, "1 h 00 m"),
        (119.7, "2 m 00 s"), (90_000, "25 h 00 m"),
    ],
)  # fmt: skip
def test_durations_in_words(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def make_job(**values: object) -> Job:
    return Job(
        **{"id": "job_1", "created_at": START, "started_at": None, "first_token_at": None, "finished_at": None} | values
    )


def make_run(fence: int, start: float, end: float | None, outcome: str | None = None) -> JobRun:
    ended = at(end) if end is not None else None
    return JobRun(job_id="job_1", fence=fence, worker_id="wrk_1", started_at=at(start), ended_at=ended, outcome=outcome)


def test_a_plain_jobs_waterfall() -> None:
    job = make_job(started_at=at(1), first_token_at=at(3), finished_at=at(7))
    fall = waterfall(job, [make_run(1, 1, 7.01, "finished")], at(100))
    assert [(span.phase, span.start, span.end, span.open) for span in fall.spans] == [
        (Phase.WAITING, 0, 1, False),
        (Phase.STARTING, 1, 3, False),
        (Phase.GENERATING, 3, 7, False),
    ]
    assert fall.seconds == 7
    left, width = fall.place(fall.spans[1])
    assert left == pytest.approx(1000 / 7)
    assert width == pytest.approx(2000 / 7)


def test_a_crash_and_a_second_wait_are_bars_of_their_own() -> None:
    job = make_job(started_at=at(1), first_token_at=at(2))
    runs = [make_run(1, 1, 4, "crashed"), make_run(2, 6, None)]
    spans = waterfall(job, runs, at(9)).spans
    assert [(span.name, span.start, span.end, span.open) for span in spans] == [
        ("Queued", 0, 1, False),
        ("Lost, run 1", 1, 4, False),
        ("Queued again", 4, 6, False),
        ("Generating, run 2", 6, 9, True),
    ]


def test_a_job_in_the_queue_grows_one_bar() -> None:
    (span,) = waterfall(make_job(), [], at(5)).spans
    assert (span.name, span.end, span.open) == ("Queued", 5, True)
    spans = waterfall(make_job(started_at=at(1)), [make_run(1, 1, 2, "handed_back")], at(5)).spans
    assert [(span.name, span.open) for span in spans] == [("Queued", False), ("Lost", False), ("Queued again", True)]


def test_a_short_bar_can_be_seen_and_stays_inside() -> None:
    job = make_job(started_at=at(0.0001), first_token_at=at(999.9999), finished_at=at(1000))
    fall = waterfall(job, [make_run(1, 0.0001, 1000, "finished")], at(2000))
    for span in fall.spans:
        left, width = fall.place(span)
        assert width >= 4
        assert left >= 0
        assert left + width <= 1000.0001


def test_the_curl_command_sends_the_same_request() -> None:
    job = make_job(
        model="tiny", input={"prompt": "it's \"quoted\"\n$HOME `x`"},
        params={"temperature": 0.0, "top_k": 0, "stop": []},
        seed=7, job_class=1, priority=0, tags=["a"], user_metadata={}, webhook=None,
    )  # fmt: skip
    words = shlex.split(as_curl(request_body(job), "https://penstock.example").replace("\\\n", " "))
    assert words[:2] == ["curl", "https://penstock.example/v1/jobs"]
    assert json.loads(words[words.index("-d") + 1]) == {
        "model": "tiny", "input": job.input, "params": {"temperature": 0.0, "seed": 7}, "class": "batch", "tags": ["a"],
    }  # fmt: skip
    assert "Authorization: Bearer $PENSTOCK_API_KEY" in words


def test_the_python_program_makes_the_same_call() -> None:
    body: dict[str, Any] = {
        "model": "tiny", "input": {"messages": [{"role": "user", "content": "it's \"quoted\"\n{x}" * 9}]},
        "params": {"temperature": 0.0, "stop": ["\n"]}, "class": "batch", "budget": {"tokens": 9}, "tags": ["a"],
    }  # fmt: skip
    submitted: dict[str, Any] = {}
    calls = [node for node in ast.walk(ast.parse(as_python(body, "https://penstock.example"))) if _is_submit(node)]
    (call,) = calls
    assert isinstance(call, ast.Call)
    for keyword in call.keywords:
        submitted[keyword.arg or ""] = ast.literal_eval(keyword.value)
    assert submitted == {
        "model": "tiny", "messages": body["input"]["messages"], "params": body["params"], "job_class": "batch",
        "token_budget": 9, "tags": ["a"],
    }  # fmt: skip


def _is_submit(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "submit"


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "quantize", "model": "tiny"},
        {"model": "tiny", "input": {"token_ids": [1, 2]}, "params": {}},
        {"model": "tiny", "input": {"prompt": "x"}, "params": {}, "budget": {"amount": "0.05", "currency": "EUR"}},
    ],
)
def test_what_the_client_has_no_call_for_is_sent_by_httpx(body: dict[str, Any]) -> None:
    tree = ast.parse(as_python(body, "https://penstock.example"))
    (sent,) = [each.value for each in ast.walk(tree) if isinstance(each, ast.keyword) and each.arg == "json"]
    assert ast.literal_eval(sent) == body


@pytest.mark.parametrize(
    ("amount", "words"), [("0.000000120", "0.00000012"), ("1234.5", "1,234.50"), ("0", "0.00"), ("3.100000000", "3.10")]
)
def test_money_in_words(amount: str, words: str) -> None:
    assert wording.money(amount) == words


def test_money_at_a_glance() -> None:
    assert [wording.about(Decimal(amount)) for amount in ("2.1561141", "0.0042441")] == ["2.16", "0.0042441"]


@pytest.mark.parametrize(("count", "words"), [(None, "–"), (999, "999 B"), (1000, "1.0 kB"), (4_250_000_000, "4.2 GB")])
def test_sizes_in_words(count: int | None, words: str) -> None:
    assert wording.size(count) == words
