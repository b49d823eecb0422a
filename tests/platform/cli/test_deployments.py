"""`penstock deployments`, against the real application."""

import json

import pytest
from penstock.auth.models import ApiKey
from penstock.db import Database
from penstock.registry.hosting_services import HostingReport, HostingState, report
from sqlalchemy import update

from tests.platform.api.conftest import Worker
from tests.platform.cli.conftest import Call


@pytest.fixture
def as_operator(connected_call: Call, database: Database) -> Call:
    with database.transaction() as session:
        session.execute(update(ApiKey).values(scopes=["operator"]))
    return connected_call


def test_versions_are_listed_placed_and_shown(as_operator: Call, worker: Worker, database: Database) -> None:
    dep = worker.deployment_id
    with database.transaction() as session:
        stats = {"kv_bytes": 3 << 20}
        report(session, worker.id, HostingReport(dep, HostingState.READY, 3, 1.0, stats=stats))
    (line,) = as_operator("deployments", "list").stdout.splitlines()
    assert line.split("\t") == [
        dep, "tiny:1", "active", "champion", "0", "0", "everywhere, warm", "test=ready(kv 3 MiB)",
    ]  # fmt: skip
    placed = as_operator(
        "deployments", "place", dep, "--worker", "h200", "--worker=east", "--replicas=2", "--kv-share=.25",
        "--mode=cold", "--idle-seconds=9",
    )  # fmt: skip
    assert placed.stdout == (
        f"{dep} 2 of h200|east, cold, kv 0.25: no live worker has the name or label h200 or east, where it is wanted\n"
    )
    shown = json.loads(as_operator("deployments", "show", dep).stdout)
    assert shown["placement"] == {
        "workers": ["h200", "east"], "replicas": 2, "kv_share": 0.25, "mode": "cold", "idle_seconds": 9.0,
    }  # fmt: skip
    assert as_operator("deployments", "place", dep).stdout == f"{dep} everywhere, warm\n"


def test_a_wish_that_makes_no_sense_says_what_would(as_operator: Call, worker: Worker) -> None:
    refused = as_operator("deployments", "place", worker.deployment_id, "--kv-share", "2")
    assert (refused.exit_code, "kv_share" in refused.stderr) == (1, True)
    with_nothing = as_operator("deployments", "show", "dep_none")
    assert (with_nothing.exit_code, "no deployment 'dep_none'" in with_nothing.stderr) == (1, True)
