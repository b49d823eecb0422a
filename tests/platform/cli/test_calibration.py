"""`penstock calibration`, and the client's calls about models' files, against the real application."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock import Client
from penstock.auth.models import Tenant
from penstock.auth.services import Scope, create_api_key
from penstock.db import Database
from penstock.errors import Forbidden, ValidationFailed
from sqlalchemy import select

from tests.platform.api.conftest import Worker
from tests.platform.cli.conftest import Call


@pytest.fixture
def administrator(url: str, api_key: str, database: Database) -> Iterator[Client]:
    """A client with another key of the tenant."""
    with database.transaction() as session:
        tenant = session.scalars(select(Tenant)).one()
        scopes = (Scope.ADMIN,)
        _, key = create_api_key(session, tenant_id=tenant.id, name="a", scopes=scopes, environment="test")
    with Client(url, key) as client:
        yield client


def test_the_text_of_jobs_becomes_a_file_and_calibrates(
    connected_call: Call, connected: Client, administrator: Client, worker: Worker, tmp_path: Path
) -> None:
    file = tmp_path / "text.jsonl"
    early = connected_call("calibration", "tiny", "--out", str(file))
    connected.jobs.submit(model="tiny", prompt="Total: ")
    worker.claim()
    worker.write("12.50 €")
    worker.finish()

    written = connected_call("calibration", "tiny", "--out", str(file), "--count", "5")
    quantized = administrator.quantize(model="tiny", recipe={"scheme": "int4", "method": "awq"}, tags=["small"])
    compared = administrator.evaluate(model="tiny:1", against="tiny", data={"from": "jobs", "count": 1})

    assert (early.exit_code, "no job of 'tiny'" in early.stderr) == (1, True)
    assert (written.exit_code, written.stdout) == (0, "")
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"text": "Total: 12.50 €"}]
    assert (quantized.kind, quantized.tags, quantized.input["recipe"]["method"]) == ("quantize", ["small"], "awq")
    assert (compared.kind, compared.input["data"]["count"]) == ("evaluate", 1)
    assert f"{quantized.model_name} version 1" in connected_call("get", quantized.id).stdout
    with pytest.raises(ValidationFailed, match=r"recipe\.scheme"):
        administrator.quantize(model="tiny", recipe={"scheme": "int1"})
    with pytest.raises(Forbidden, match="scope admin"):
        connected.quantize(model="tiny", recipe={"scheme": "int4"}, evaluate=False)
