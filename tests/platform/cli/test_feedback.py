"""`penstock feedback` against the real application."""

import json

from penstock import Client

from tests.platform.api.conftest import Worker
from tests.platform.cli.conftest import Call


def test_an_answer_is_judged_and_what_was_said_is_shown(
    connected_call: Call, connected: Client, worker: Worker
) -> None:
    job_id = connected.jobs.submit(model="tiny", prompt="x").id
    early = connected_call("feedback", job_id, "--score", "1")
    worker.claim()
    worker.write("Hi")
    worker.finish()

    given = connected_call("feedback", job_id, "--score", "0.5", "--comment", "short\x1b", "--choice", "0", "--json")
    shown = connected_call("feedback", job_id)

    assert (early.exit_code, "is still queued" in early.stderr) == (1, True)
    assert (given.exit_code, json.loads(given.stdout)["score"]) == (0, 0.5)
    (line,) = shown.stdout.splitlines()
    assert line.split("\t")[0] == json.loads(given.stdout)["id"]
    assert line.split("\t")[2:5] == ["0", "0.5", "-"]
    assert "\x1b" not in line
    assert connected_call("feedback", job_id, "--comment", "alone").exit_code == 2
