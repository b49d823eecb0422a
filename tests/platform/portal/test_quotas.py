"""People are held to their tenant's limits as its programs are."""

from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.registry.models import Deployment

from tests.platform.portal.conftest import Person

FORM = {"model": "tiny", "mode": "prompt", "input.prompt": "hello there", "params.max_tokens": "48"}


def test_a_submit_beyond_the_tokens_of_a_minute_is_told_so(
    person: Person, deployment: Deployment, database: Database
) -> None:
    with database.transaction() as session:
        session.get_one(Tenant, person.tenant_id).tokens_per_minute = 60
    assert person.post("/jobs/new", FORM).status_code == 303
    refused = person.post("/jobs/new", FORM)
    assert refused.status_code == 429
    assert "The tenant may use 60 tokens in a minute" in refused.text


def test_a_persons_streams_count_with_the_tenants(person: Person, deployment: Deployment, database: Database) -> None:
    with database.transaction() as session:
        session.get_one(Tenant, person.tenant_id).max_open_streams = 1
    path = f"/jobs/{person.submit().id}/events"
    first = person.get(path)
    assert first.status_code == 200
    assert person.get(path).status_code == 429
    first.close()
