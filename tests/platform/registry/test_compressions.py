"""A quantization from the request to the registered version: the real tool, the real registry, and a crash between."""

import threading
import time
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from penstock.compressions.publication import Publication, publish
from penstock.compressions.publishing import Publisher
from penstock.db import Database
from penstock.jobs.journal import Journal
from penstock.registry.folder import describe, verify
from penstock.registry.mlflow_api import MlflowApi
from penstock.registry.models import Deployment
from penstock.registry.registration import EXPERIMENT
from penstock.registry.version_tags import from_tags
from penstock.settings import Settings
from penstock_compress.evaluate_cli import evaluate
from penstock_worker.file_lane import FileLane
from redis import Redis

from tests.factories import DEMO_MODEL
from tests.patience import eventually
from tests.platform.api.conftest import Caller, Worker, app, caller, make_caller, worker
from tests.platform.registry.model_folders import make_folder
from tests.worker.conftest import deploy

__all__ = ["app", "caller", "make_caller", "worker"]  # fixtures
QUANTIZE: dict[str, Any] = {
    "kind": "quantize", "model": "tiny", "name": "smaller", "evaluate": False,
    "recipe": {"scheme": "int4", "method": "gptq", "group": 64, "samples": 2, "length": 16},
}  # fmt: skip


@pytest.fixture
def deployment(database: Database) -> Deployment:
    return deploy(database, DEMO_MODEL)


def answered(caller: Caller, worker: Worker) -> None:
    caller.submit()
    worker.claim()
    worker.write(" 4711, total 12.50 EUR" * 12)
    worker.finish()


def run_of(client: mlflow.MlflowClient, job_id: str) -> Any:
    (experiment,) = [found for found in client.search_experiments() if found.name == EXPERIMENT]
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`penstock.job` = '{job_id}'")
    return client.get_run(run.info.run_id)  # a search leaves inputs out


def tool_of(job_id: str) -> psutil.Process | None:
    for process in psutil.process_iter(["cmdline"]):
        given = process.info["cmdline"] or []
        if "quantize" in given and any(job_id in argument for argument in given):
            return process
    return None


def test_a_quantization_survives_a_crash_and_ends_as_a_registered_version(
    caller: Caller, worker: Worker, database: Database, redis: Redis, registry_settings: Settings, tmp_path: Path
) -> None:
    settings = registry_settings.model_copy(update={"models_folder": str(tmp_path), "lease_seconds": 30.0})
    lane = FileLane(settings, "wrk_1", database, Journal(redis, "test"))
    answered(caller, worker)
    job_id = caller.post("/v1/jobs", QUANTIZE).json["id"]
    published = threading.Event()
    thread = threading.Thread(target=lambda: [lane.work_once() for _ in iter(published.is_set, True)])
    thread.start()
    tool = eventually(lambda: tool_of(job_id), "the tool")
    first_part = tmp_path / ".making" / job_id / "model.partial" / "progress.json"
    while not first_part.exists():
        assert tool.is_running(), "it ended before it was seen at work"
        time.sleep(0.002)  # all parts together take a third of a second
    tool.kill()
    eventually(lambda: Publisher(database, settings).publish_next(), "something to publish", patience=200)
    published.set()
    thread.join(30)

    job = caller.get(f"/v1/jobs/{job_id}").json
    assert (job["status"], job["runs"]) == ("succeeded", 2), job["error"]
    requeued = next(event for event in job["timeline"] if event["type"] == "job.requeued")
    assert "SIGKILL" in requeued["data"]["reason"]
    output = job["output"]
    assert (output["model"], output["version"], output["against"], output["created"]) == (
        "smaller",
        "1",
        "tiny:1",
        True,
    )
    assert 0.2 < output["ratio"] < 0.5
    with MlflowApi(settings) as api:
        (version,) = api.versions("smaller")
    facts = from_tags(version.tags)
    verify(facts.source, facts.manifest)
    assert (str(facts.source), facts.recipe["scheme"]) == (output["source"], "compressed-tensors")
    assert {"penstock.job": job_id, "penstock.parent": "tiny:1"}.items() <= version.tags.items()
    assert version.aliases == ()

    client = mlflow.MlflowClient(settings.mlflow_tracking_uri)
    run = run_of(client, job_id)
    registered = client.get_model_version("smaller", "1")
    assert (run.info.run_id, registered.run_id, run.info.status) == (output["run_id"], output["run_id"], "FINISHED")
    assert run.data.metrics["ratio"] == pytest.approx(output["ratio"])
    assert run.data.params["scheme"] == "int4"
    (made,) = run.outputs.model_outputs
    logged = client.get_logged_model(made.model_id)
    assert logged.tags["penstock.digest"] == version.tags["penstock.digest"]
    assert (logged.source_run_id, {metric.key for metric in logged.metrics}) == (
        output["run_id"], {"bytes", "source_bytes", "ratio"},
    )  # fmt: skip


def test_publishing_again_makes_nothing_twice(registry_settings: Settings, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "made", seed=1)
    made = Publication(
        "job_1", "tiny", "1", str(folder), {"scheme": "int8"}, {"kl": {"mean": 0.5}}, parent="big:3", alias="challenger"
    )
    judged = Publication("job_2", "tiny", "1", None, {"against": "big:3"}, {"same_top": 0.75}, parent="big:3")
    sent, settings = Publication.read(made.with_settings(registry_settings))
    first = publish(settings, sent)
    assert publish(settings, sent) == first | {"created": False}
    assert publish(settings, judged) == publish(settings, judged)

    client = mlflow.MlflowClient(settings.mlflow_tracking_uri)
    (version,) = client.search_model_versions("name = 'tiny'")
    assert (first["version"], version.version, version.run_id) == ("1", "1", run_of(client, "job_1").info.run_id)
    assert client.get_model_version_by_alias("tiny", "challenger").version == "1"
    assert run_of(client, "job_1").data.metrics == {"kl.mean": 0.5}
    run = run_of(client, "job_2")
    assert run.data.metrics == {"same_top": 0.75}
    (judged_model,) = run.inputs.model_inputs
    assert client.get_logged_model(judged_model.model_id).tags["penstock.job"] == "job_1"
    assert describe(folder).manifest == from_tags(version.tags).manifest


def test_the_command_that_compares_takes_what_the_lane_gives_it() -> None:
    arguments = ["smaller", "--against", "whole", "--data", "text.jsonl", "--progress", "json"]
    given = evaluate.make_context("evaluate", arguments).params
    assert (given["candidate"], given["against"], given["data"]) == (Path("smaller"), Path("whole"), Path("text.jsonl"))
