"""The commands that talk to a server, against the real application."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from penstock import Client
from penstock.jobs.journal import JournalEntry
from penstock.jobs.states import JobState

from tests.platform.api.conftest import Worker
from tests.platform.cli.conftest import Call


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Do `work` in a thread while the block runs."""
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


def run_next(
    worker: Worker, *texts: str, state: JobState = JobState.SUCCEEDED, waits_for: Client | None = None
) -> None:
    """Serve the next job; with `waits_for`, once there is one."""
    while waits_for is not None and not list(waits_for.jobs.list(status="queued")):
        threading.Event().wait(0.02)
    worker.claim()
    worker.write(*texts)
    worker.finish(state)


def test_submit_prints_the_id_alone(connected_call: Call, connected: Client, worker: Worker) -> None:
    result = connected_call(
        "submit", "-m", "tiny", "one two", "--max-tokens", "5", "--temperature", "0", "--stop", "x",
        "--param", "top_k=3",
        "--class", "batch", "--priority", "2", "--deadline", "10m", "--tag", "a", "--metadata", "k=v",
        "--webhook", "https://example.com/", "--webhook-event", "job.failed",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    job = connected.jobs.get(result.stdout.strip())
    assert job.input == {"prompt": "one two"}
    assert job.params["max_tokens"] == 5
    assert job.params["top_k"] == 3
    assert job.params["stop"] == ["x"]
    assert (job.job_class, job.priority, job.tags, job.metadata) == ("batch", 2, ["a"], {"k": "v"})
    assert job.deadline is not None
    assert 590 < (job.deadline - job.created_at).total_seconds() < 600
    assert job.webhook == {"url": "https://example.com/", "events": ["job.failed"]}


def test_submit_asks_for_several_answers_of_a_structure(
    connected_call: Call, connected: Client, worker: Worker, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"z": {}, "a": {}}}')
    result = connected_call(
        "submit", "-m", "tiny", "one", "--n", "2", "--best-of", "3", "--min-p", "0.1", "--logprobs",
        "--json-schema", str(schema), "--logit-bias", "17=-2.5", "--logit-bias", "18=1", "--budget", "200",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    job = connected.jobs.get(result.stdout.strip())
    assert (job.params["n"], job.params["best_of"], job.params["min_p"], job.params["logprobs"]) == (2, 3, 0.1, True)
    assert job.params["logit_bias"] == {"17": -2.5, "18": 1}
    assert list(job.params["response_format"]["schema"]["properties"]) == ["z", "a"]
    assert job.budget is not None
    assert job.budget.tokens == 200


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--regex", "[0-9]+"), {"type": "regex", "regex": "[0-9]+"}),
        (("--choice", "yes", "--choice", "no"), {"type": "choice", "choice": ["yes", "no"]}),
        (("--lark", "FILE"), {"type": "lark", "lark": 'start: "a"'}),
    ],
)
def test_submit_names_the_structure_in_other_ways(
    connected_call: Call, connected: Client, worker: Worker, tmp_path: Path, options: tuple[str, ...], wanted: object
) -> None:
    file = tmp_path / "grammar.lark"
    file.write_text('start: "a"')
    named = [str(file) if option == "FILE" else option for option in options]
    job_id = connected_call("submit", "-m", "tiny", "one", *named).stdout.strip()
    assert connected.jobs.get(job_id).params["response_format"] == wanted


def test_wait_prints_every_answer(connected_call: Call, connected: Client, worker: Worker) -> None:
    with beside(lambda: run_choices(worker, connected)):
        result = connected_call("submit", "-m", "tiny", "one", "--n", "2", "--wait")
    assert result.stdout == "first\n\nsecond\n"
    job_id = next(iter(connected.jobs.list())).id
    assert connected_call("watch", job_id).stdout == "first\n\nsecond\n"


def run_choices(worker: Worker, waits_for: Client) -> None:
    """Serve the next job with two choices, whose tokens come in turn."""
    while not list(waits_for.jobs.list(status="queued")):
        threading.Event().wait(0.02)
    held = worker.claim()
    pieces = [(0, 0, "fir"), (1, 0, "sec"), (0, 1, "st"), (1, 1, "ond")]
    entries = [JournalEntry(choice, index, 9, text, None, held.fence) for choice, index, text in pieces]
    worker.entries = [*entries, JournalEntry(1, 2, None, "", None, held.fence, "stop")]
    worker.journal.rewrite(held.job_id, held.fence, worker.entries)
    worker.finish(JobState.SUCCEEDED)


def test_submit_reads_standard_input(connected_call: Call, connected: Client, worker: Worker) -> None:
    job_id = connected_call("submit", "-m", "tiny", stdin="from a pipe\n").stdout.strip()
    assert connected.jobs.get(job_id).input == {"prompt": "from a pipe\n"}


def test_submit_as_chat(connected_call: Call, connected: Client, worker: Worker, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Grüße")
    job_id = connected_call("submit", "-m", "tiny", "--chat", "--system", "Be kind.", "-f", str(file)).stdout.strip()
    assert connected.jobs.get(job_id).input == {
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Grüße"}]
    }


def test_submit_messages(connected_call: Call, connected: Client, worker: Worker) -> None:
    messages = [{"role": "user", "content": "hi"}]
    job_id = connected_call("submit", "-m", "tiny", "--messages", "-", stdin=json.dumps(messages)).stdout.strip()
    assert connected.jobs.get(job_id).input == {"messages": messages}


def test_submit_and_wait_prints_the_answer(connected_call: Call, connected: Client, worker: Worker) -> None:
    with beside(lambda: run_next(worker, "Hé", "llo", waits_for=connected)):
        result = connected_call("submit", "-m", "tiny", "x", "--wait")
    assert (result.exit_code, result.stdout) == (0, "Héllo\n")
    assert "succeeded" in result.stderr
    assert "tiny version 1" in result.stderr
    assert result.stderr.count("\n") == 1


def test_waiting_for_a_job_that_fails_ends_with_1(connected_call: Call, connected: Client, worker: Worker) -> None:
    with beside(lambda: run_next(worker, "part", state=JobState.FAILED, waits_for=connected)):
        result = connected_call("submit", "-m", "tiny", "x", "--wait", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "failed"
    assert result.stderr == ""


def test_waiting_no_longer_than_asked(connected_call: Call, worker: Worker) -> None:
    result = connected_call("submit", "-m", "tiny", "x", "--wait", "--timeout", "0.1")
    assert result.exit_code == 1
    told, error = result.stderr.splitlines()
    assert told.startswith("submitted, and going on: job_")
    assert "is queued after 0.1 seconds" in error


def test_a_job_for_each_file(connected_call: Call, connected: Client, worker: Worker, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    files = ["-f", str(tmp_path / "a"), "-f", str(tmp_path / "b")]

    def serve_both() -> None:
        run_next(worker, "first", waits_for=connected)
        run_next(worker, "second", waits_for=connected)

    with beside(serve_both):
        result = connected_call("submit", "-m", "tiny", *files, "--wait")
    assert (result.exit_code, result.stdout) == (0, "first\nsecond\n")


def test_jobs_that_were_submitted_before_a_refusal_are_told(
    connected_call: Call, connected: Client, worker: Worker, tmp_path: Path
) -> None:
    (tmp_path / "fits").write_text("one")
    (tmp_path / "does-not").write_text("many " * 300)
    result = connected_call("submit", "-m", "tiny", "-f", str(tmp_path / "fits"), "-f", str(tmp_path / "does-not"))
    (job,) = connected.jobs.list()
    assert result.exit_code == 1
    assert result.stdout == f"{job.id}\n"
    assert f"submitted, and going on: {job.id}" in result.stderr
    assert "context holds 256" in result.stderr


def test_submit_and_watch_writes_the_text_and_tells_the_states(
    connected_call: Call, connected: Client, worker: Worker
) -> None:
    with beside(lambda: run_next(worker, "Hé", "llo", waits_for=connected)):
        result = connected_call("submit", "-m", "tiny", "x", "--watch")
    assert (result.exit_code, result.stdout) == (0, "Héllo\n")
    positions = [result.stderr.index(state) for state in ("job.queued", "job.running", "job.succeeded")]
    assert positions == sorted(positions)


def test_watch_as_json_gives_every_event(connected_call: Call, connected: Client, worker: Worker) -> None:
    job = connected.jobs.submit(model="tiny", prompt="x")
    run_next(worker, "a", "b")
    result = connected_call("watch", job.id, "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["id"] for event in events] == ["1.0", "2.0", "2.1", "2.2", "2.3", "3.3"]
    assert [event["text"] for event in events if event["type"] == "output.delta"] == ["a", "b", ""]
    assert events[-1]["job"]["id"] == job.id
    rest = connected_call("watch", job.id, "--json", "--after", "2.1").stdout.splitlines()
    assert rest == result.stdout.splitlines()[3:]


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_watching_a_job_that_does_not_succeed_ends_with_1(
    connected_call: Call, connected: Client, worker: Worker, state: JobState
) -> None:
    job = connected.jobs.submit(model="tiny", prompt="x")
    run_next(worker, "a", state=state)
    assert connected_call("watch", job.id).exit_code == 1


def test_watching_after_the_last_event_still_tells_how_it_ended(
    connected_call: Call, connected: Client, worker: Worker
) -> None:
    job = connected.jobs.submit(model="tiny", prompt="x")
    run_next(worker, "a")
    result = connected_call("watch", job.id, "--after", "3.2")
    assert result.exit_code == 0
    assert f"{job.id} succeeded" in result.stderr


def test_get_shows_the_job_and_its_blocker(connected_call: Call, connected: Client, worker: Worker) -> None:
    job = connected.jobs.submit(model="tiny", prompt="x", tags=["blue"])
    shown = connected_call("get", job.id).stdout
    assert job.id in shown
    assert "position 1: a worker is about to take it" in shown
    assert "blue" in shown
    document = json.loads(connected_call("get", job.id, "--json").stdout)
    assert document["class"] == "interactive"
    assert document["queue"]["position"] == 1


def test_nothing_is_wrapped_into_a_pipe(connected_call: Call, connected: Client, worker: Worker) -> None:
    job = connected.jobs.submit(model="tiny", prompt="x")
    run_next(worker, "word " * 100)
    assert "word " * 100 in connected_call("get", job.id).stdout


def test_list_filters_and_gives_columns(connected_call: Call, connected: Client, worker: Worker) -> None:
    first = connected.jobs.submit(model="tiny", prompt="x", tags=["blue"])
    second = connected.jobs.submit(model="tiny", prompt="x")
    rows = [line.split("\t") for line in connected_call("list").stdout.splitlines()]
    assert [row[:3] for row in rows] == [[second.id, "queued", "tiny:1"], [first.id, "queued", "tiny:1"]]
    assert [line.split("\t")[0] for line in connected_call("list", "--tag", "blue").stdout.splitlines()] == [first.id]
    assert connected_call("list", "--status", "running", "--status", "failed").stdout == ""
    assert connected_call("list", "--after", "0s").stdout == ""
    assert len(connected_call("list", "--limit", "1").stdout.splitlines()) == 1
    assert json.loads(connected_call("list", "--limit", "1", "--json").stdout)["id"] == second.id


def test_cancel_and_retry(connected_call: Call, connected: Client, worker: Worker) -> None:
    ids = [connected.jobs.submit(model="tiny", prompt="x").id for _ in range(2)]
    assert connected_call("cancel", *ids).stdout == f"{ids[0]} cancelled\n{ids[1]} cancelled\n"
    again = connected_call("retry", ids[0]).stdout.strip()
    assert connected.jobs.get(again).retry_of == ids[0]
    worker.claim()
    assert connected_call("cancel", again).stdout == f"{again} will stop at its next token\n"
    refused = connected_call("cancel", ids[0])
    assert refused.exit_code == 1
    assert refused.stderr == f"Error: {ids[0]} is cancelled already\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["submit", "-m", "huge", "x"],
            "Error: no model 'huge' with the alias 'champion'; models that take jobs: tiny",
        ),
        (
            ["submit", "-m", "tiny", "x", "--temperature", "900"],
            "Error: params.temperature: is too large; it must be 100.0 or less",
        ),
        (["submit", "-m", "tiny", "x", "--param", "wrong=1"], "Error: params.wrong: is not a known field"),
        (["get", "job_nothing"], "Error: id: no job 'job_nothing'"),
        (["watch", "job_nothing"], "Error: id: no job 'job_nothing'"),
        (["get", "x", "--api-key", "psk_test_nonsense"], "Error: this is not an API key"),
    ],
)
def test_the_servers_refusals_are_one_line(
    connected_call: Call, worker: Worker, arguments: list[str], expected: str
) -> None:
    result = connected_call(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(expected)
    assert result.stderr.count("\n") == 1


def test_a_server_that_is_not_there(call: Call) -> None:
    result = call("submit", "-m", "tiny", "x", "--url", "http://127.0.0.1:9", "--api-key", "psk_x")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: http://127.0.0.1:9 does not answer")
    assert "Traceback" not in result.output


def test_delete_ends_finished_jobs_for_good(connected_call: Call, connected: Client, worker: Worker) -> None:
    job, waits = (connected.jobs.submit(model="tiny", prompt="one two") for _ in range(2))
    run_next(worker, "a")
    result = connected_call("delete", job.id, waits.id)
    assert (result.exit_code, result.stdout) == (1, f"{job.id} deleted\n")
    assert f"{waits.id} is still queued" in result.stderr
    assert [left.id for left in connected.jobs.list()] == [waits.id]
