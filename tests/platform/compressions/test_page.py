"""The portal's page of a job that works on a model's files."""

from typing import Any

import pytest
from penstock.compressions.schemas import asked_by
from penstock.compressions.services import Asked, Submission, submit
from penstock.compressions.versions import find
from penstock.jobs import lease
from penstock.jobs.lease import Finish, Held
from penstock.jobs.states import JobState
from penstock.registry.models import LANE_ID

from tests.platform.portal.conftest import Person, app, deployment, make_person, person

__all__ = ["app", "deployment", "make_person", "person"]  # fixtures
OUTPUT: dict[str, Any] = {
    "model": "tiny", "version": "2", "against": "tiny:1", "created": True, "source": "/there", "bytes": 35,
    "source_bytes": 100, "ratio": 0.35, "recipe": {"scheme": "int4"}, "figures": None, "run_id": "run",
}  # fmt: skip


@pytest.mark.usefixtures("deployment")
def test_it_tells_how_far_the_job_is_and_what_came_of_it(person: Person) -> None:
    with person.database.transaction() as session:
        request = asked_by("quantize", {"recipe": {"scheme": "int4"}, "evaluate": False}, "tiny")
        model = find(session, "tiny")
        assert model is not None
        job_id = submit(session, Asked(request, model), Submission(person.tenant_id, 10)).id
    waiting = person.get(f"/jobs/{job_id}")
    with person.database.transaction() as session:
        claim = lease.claim(session, worker_id="wrk_1:files", deployment_id=LANE_ID, lease_seconds=30)
        assert claim is not None
        held = Held(job_id, claim.fence)
        lease.note_progress(session, held, {"stage": "quantize", "done": 2, "of": 5, "what": "block 1"})
        lease.finish(session, held, Finish(JobState.SUCCEEDED, (), 0, output=OUTPUT))
    finished = person.get(f"/jobs/{job_id}")

    assert (waiting.status_code, finished.status_code) == (200, 200)
    assert "&#34;kind&#34;: &#34;quantize&#34;" in waiting.text
    assert "Quantize: 2 of 5" in finished.text
    assert "tiny version 2, beside tiny:1, 35% of its bytes" in finished.text
    assert "tiny version 2" in person.get("/jobs").text
