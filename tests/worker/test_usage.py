"""What a real worker's jobs are charged, and what its metrics say of the same."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.jobs.models import Job
from penstock.jobs.states import RunOutcome
from penstock.settings import Settings
from penstock.usage.models import UsageEntry
from penstock.usage.prices import NewPrice, set_price
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select

from tests.conftest import ROOT, empty
from tests.factories import make_tenant
from tests.patience import eventually
from tests.worker.conftest import Jobs, deploy, worker_starter

GREEDY = {"temperature": 0.0, "ignore_eos": True}


@dataclass(frozen=True)
class Counting:
    """A worker whose metrics are open, and jobs for it."""

    database: Database
    tenant: Tenant
    jobs: Jobs
    port: int
    death: Path

    def let_die_after(self, steps: int) -> None:
        """The engine kills itself in the step after so many; see `hang/sitecustomize.py`."""
        whole = self.death.with_suffix(".new")
        whole.write_text(str(steps))
        whole.rename(self.death)

    def run(self, prompt: str, **params: object) -> Job:
        return self.jobs.finished(self.jobs.submit(prompt, params=GREEDY | params))

    def metrics(self) -> dict[str, float]:
        """Each sample's value, summed over its labels but those named in its key."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/metrics")
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                told = [sample.labels[name] for name in ("use", "outcome", "finished_reason") if name in sample.labels]
                key = ":".join([sample.name, *told])
                found[key] = found.get(key, 0.0) + sample.value
        return found


@pytest.fixture(scope="module")
def counting(
    settings: Settings, migrated: Database, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Counting]:
    empty(migrated)
    with migrated.transaction() as session:
        tenant = make_tenant(session)
        set_price(session, NewPrice("tiny", "EUR", *[Decimal(1000)] * 3, Decimal(2)), created_by="a test")
    deploy(migrated, model_folder)
    folder = tmp_path_factory.mktemp("worker")
    death = folder / "death"
    with worker_starter(settings, migrated, folder) as start, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests/worker/hang"))
        patch.setenv("DEATH_FILE", str(death))
        worker = start(worker_slots=8, worker_metrics_port=0)
        port = re.search(r"metrics\.serving.*port=(\d+)", re.sub("\x1b\\[[0-9;]*m", "", worker.log.read_text()))
        assert port is not None
        yield Counting(migrated, tenant, Jobs(migrated, tenant), int(port[1]), death)


def test_a_job_is_told_what_it_took(counting: Counting) -> None:
    job = counting.run("Invoice 1 of nobody in particular", max_tokens=20)
    (run,) = counting.jobs.runs(job.id)
    account = job.account
    assert account is not None
    assert job.prompt_tokens is not None
    assert account["computed_tokens"] == job.prompt_tokens - job.cached_tokens + 19
    assert account["recomputed_tokens"] == 0
    assert account["device_seconds"] > 0
    assert account["energy"] == {"joules": None, "reason": "the energy of the device cpu is not measured"}
    assert account["device_seconds"] == pytest.approx(run.device_seconds, abs=1e-6)
    assert None not in (run.queue_seconds, run.prefill_seconds, run.decode_seconds)
    assert run.ended_at is not None
    lasted = (run.ended_at - run.started_at).total_seconds()
    assert 0 < (run.prefill_seconds or 0) + (run.decode_seconds or 0) < lasted
    tokens = (job.prompt_tokens + 20) * Decimal("0.001")
    assert Decimal(account["cost"]["amount"]) == pytest.approx(
        tokens + Decimal(run.device_seconds) * 2, abs=Decimal("1e-8")
    )


def test_a_job_ends_where_its_budget_does(counting: Counting) -> None:
    """A token costs a thousandth: beyond the prompt there is money for ten at most."""
    prompt = "Invoice 2 with a budget of its own"
    expected = counting.run(prompt, max_tokens=40)
    assert expected.prompt_tokens is not None
    amount = Decimal(expected.prompt_tokens + 10) * Decimal("0.001")
    budget = {"amount": str(amount), "currency": "EUR"}
    job = counting.jobs.finished(counting.jobs.submit(prompt, params=GREEDY | {"max_tokens": 40}, budget=budget))
    assert job.state == "succeeded"
    assert job.output is not None
    assert job.output["choices"][0]["finish_reason"] == "length"
    assert 0 < job.output_tokens <= 10
    assert job.account is not None
    assert Decimal(job.account["cost"]["amount"]) <= amount


def test_choices_and_stops_are_counted_like_the_engine_does(counting: Counting) -> None:
    counting.run("Invoice 3", max_tokens=2)  # with it the engine tells of what was dropped before
    before = counting.metrics()
    params = GREEDY | {"n": 2, "max_tokens": 12}
    many = counting.jobs.submit_many([f"Invoice 3.{number}" for number in range(6)], params=params)
    ended = [counting.jobs.finished(job_id) for job_id in many]
    generated = sum(job.output_tokens for job in ended)
    assert generated == 6 * 2 * 12

    def told() -> dict[str, float] | None:
        now = counting.metrics()
        grown = {name: value - before.get(name, 0.0) for name, value in now.items()}
        return grown if grown["penstock_runs_total:finished"] == 6 else None

    grown = eventually(told, "the runs' metrics")
    assert grown["vllm:generation_tokens_total"] == generated
    assert grown["vllm:request_success_total:length"] == 6
    assert grown["vllm:time_to_first_token_seconds_count"] == 6
    assert grown["vllm:inter_token_latency_seconds_count"] == 6 * 11
    assert grown["vllm:prompt_tokens_total"] == sum(job.prompt_tokens or 0 for job in ended)
    assert grown["penstock_job_e2e_seconds_count"] == 6


def test_a_run_that_crashed_is_not_charged(counting: Counting) -> None:
    """The engine dies in the middle; its successor goes on at the exact token, and the job has one entry."""
    counting.let_die_after(40)
    job_id = counting.jobs.submit("Invoice 5", params=GREEDY | {"max_tokens": 60})
    job = counting.jobs.finished(job_id)
    lost, last = counting.jobs.runs(job_id)
    assert (lost.outcome, last.outcome) == (RunOutcome.CRASHED_ALONE, RunOutcome.FINISHED)
    assert job.output_tokens == 60
    with counting.database.transaction() as session:
        entry = session.get_one(UsageEntry, job_id)
    assert entry.device_seconds == pytest.approx(last.device_seconds)
    assert entry.recomputed_seconds == pytest.approx(lost.device_seconds)
    assert (entry.computed_tokens, entry.recomputed_tokens) == (
        lost.computed_tokens + last.computed_tokens,
        lost.computed_tokens,
    )
    assert last.resumed_at_position > 20


def test_what_tenants_are_charged_is_what_the_engine_was_busy(counting: Counting) -> None:
    """All shares, those of jobs that somebody cancelled as well, add up to the busy time, in metrics and in entries."""
    counting.run("Invoice 4", max_tokens=30)
    metrics = counting.metrics()
    used = sum(metrics.get(f"penstock_device_seconds_total:{use}", 0) for use in ("charged", "recomputed", "dropped"))
    assert metrics["penstock_engine_busy_seconds_total"] == pytest.approx(used, rel=1e-6)
    with counting.database.transaction() as session:
        charged = session.scalar(select(func.sum(UsageEntry.device_seconds)))
    assert charged == pytest.approx(metrics["penstock_device_seconds_total:charged"], rel=1e-6)
