"""What stands in a batch's way: quotas, budgets, wrong lines, crashes, a tender that sleeps, a file that is lost."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.batches import finishing
from penstock.batches.models import Batch
from penstock.batches.turns import TurnLost
from penstock.jobs.states import JobState
from penstock.usage.budgets import set_budget
from penstock.usage.prices import NewPrice, set_price
from sqlalchemy import func, update

from tests.platform.batches.conftest import WAITING, Bench, lines, native


def test_a_line_that_no_job_can_be_made_of_fails_alone(bench: Bench) -> None:
    long = "word " * 400
    batch_id = bench.make([native(1), native(2, long), native(3)])
    done = bench.run_to_end(batch_id)

    assert done["lines"] | {"succeeded": 2, "failed": 1} == done["lines"]
    (error,) = bench.content(done["error_file_id"])
    assert (error["line"], error["error"]["code"]) == (2, "context_length_exceeded")


def test_a_full_queue_holds_the_batch_up_and_fails_nothing(bench: Bench) -> None:
    with bench.workshop.database.transaction() as session:
        session.execute(update(Tenant).values(max_queued_jobs=3))
    batch_id = bench.make(lines(5))
    bench.tend()
    assert bench.get(batch_id)["blocker"]["code"] == "quota_exceeded"
    done = bench.run_to_end(batch_id)
    assert (done["lines"]["succeeded"], done["blocker"]) == (5, None)


def budgeted(bench: Bench, amount: str) -> None:
    """A line may cost 17 thousandths, and costs 7 when it is through; the tenant may spend so much."""
    price = NewPrice("tiny", "EUR", Decimal(1000), Decimal(1000), Decimal(5000))
    with bench.workshop.database.transaction() as session:
        set_price(session, price, created_by="a test")
        set_budget(session, bench.caller.tenant_id, "EUR", Decimal(amount))


def test_what_open_lines_have_reserved_is_waited_for(bench: Bench) -> None:
    budgeted(bench, "0.06")
    body = {"model": "tiny", "input": {"prompt": "hello there"}, "params": {"max_tokens": 3}}
    batch_id = bench.make([native(number, body=body) for number in range(1, 6)])
    bench.tend()
    document = bench.get(batch_id)
    assert (document["blocker"]["code"], document["lines"]["waiting"], document["lines"]["failed"]) == (
        "budget_exceeded",
        3,
        0,
    )
    assert bench.run_to_end(batch_id)["lines"]["succeeded"] == 5


def test_lines_that_no_budget_holds_fail(bench: Bench) -> None:
    budgeted(bench, "0.01")
    body = {"model": "tiny", "input": {"prompt": "hello there"}, "params": {"max_tokens": 3}}
    batch_id = bench.make([native(number, body=body) for number in range(1, 4)])
    done = bench.run_to_end(batch_id)
    assert (done["status"], done["lines"]["failed"]) == ("completed", 3)
    assert {error["error"]["code"] for error in bench.content(done["error_file_id"])} == {"budget_exceeded"}


def test_a_key_for_other_models_tries_no_lines_again(bench: Bench) -> None:
    batch_id = bench.make(lines(1))
    bench.run_to_end(batch_id, ends={1: JobState.FAILED})
    again = bench.ask(batch_id, "retry", {})["id"]
    with bench.workshop.database.transaction() as session:
        session.execute(update(Batch).where(Batch.id == again).values(allowed_models=["large"]))

    done = bench.run_to_end(again)
    (error,) = bench.content(done["error_file_id"])
    assert error["error"]["code"] == "model_not_allowed"
    assert len(bench.jobs(done["id"])) == 0


def test_who_slept_through_its_turn_writes_nothing(bench: Bench) -> None:
    batch_id = bench.make(lines(5))
    late = bench.take()
    assert late is not None
    with bench.workshop.database.transaction() as session:
        session.execute(update(Batch).values(taken_until=func.now() - timedelta(seconds=1)))
    bench.tend()

    with pytest.raises(TurnLost):
        bench.tender.step(late)
    assert [job.batch_line for job in bench.jobs(batch_id)] == [1, 2, 3, 4, 5]


def test_two_tenders_make_each_line_one_job(bench: Bench) -> None:
    """The turn of one is taken over in the middle of its step: its transaction is refused as a whole."""
    batch_id = bench.make(lines(5))
    turn = bench.take()
    assert turn is not None
    while bench.get(batch_id)["status"] == "validating":
        bench.tender.step(turn)
    read = bench.workshop.storage.read

    def taken_over(key: str, start: int, length: int) -> bytes:
        with bench.workshop.database.transaction() as session:
            session.execute(update(Batch).values(fence=Batch.fence + 1))
        return read(key, start, length)

    bench.workshop.storage.__dict__["read"] = taken_over
    with pytest.raises(TurnLost):
        bench.tender.step(turn)
    del bench.workshop.storage.__dict__["read"]
    assert bench.jobs(batch_id) == []
    with bench.workshop.database.transaction() as session:
        session.execute(update(Batch).values(taken_until=None))
    assert bench.run_to_end(batch_id)["lines"]["succeeded"] == 5
    assert len(bench.jobs(batch_id)) == 5


def test_a_crash_between_the_files_and_the_end_leaves_neither(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = bench.make(lines(3))
    bench.tend()
    bench.serve()

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(finishing, "tell", crash)
        with pytest.raises(KeyboardInterrupt):
            bench.tend()
    assert bench.get(batch_id)["status"] == "finalizing"
    assert [file["purpose"] for file in bench.caller.get("/v1/files").json["data"]] == ["batch"]
    with bench.workshop.database.transaction() as session:
        session.execute(update(Batch).values(taken_until=None, due_at=func.now()))

    done = bench.run_to_end(batch_id)
    assert (done["status"], len(bench.content(done["output_file_id"]))) == ("completed", 3)


def test_one_batch_that_cannot_be_worked_at_does_not_hold_up_others(bench: Bench) -> None:
    broken, well = bench.make([native(1, url="/v1/nothing")]), bench.make(lines(1))
    with bench.workshop.database.transaction() as session:
        session.execute(update(Batch).where(Batch.id == broken).values(endpoint="/v1/nothing"))
    while bench.tender.work_once():
        pass
    assert [bench.get(batch_id)["status"] for batch_id in (broken, well)] == ["validating", "in_progress"]


def test_a_batch_whose_input_is_lost_says_so(bench: Bench) -> None:
    batch_id = bench.make(lines(2 * WAITING))
    unread = bench.make(lines(1))
    while bench.get(batch_id)["lines"]["waiting"] < WAITING:
        turn = bench.take()
        assert turn is not None
        bench.tender.step(turn)
        with bench.workshop.database.transaction() as session:
            session.execute(update(Batch).where(Batch.id == batch_id).values(taken_until=None))
    for lost in (batch_id, unread):
        bench.workshop.storage.delete(f"{bench.caller.tenant_id}/{bench.get(lost)['input_file_id']}")

    done = bench.run_to_end(batch_id)
    assert done["lines"] | {"succeeded": WAITING, "failed": WAITING} == done["lines"]
    assert {error["error"]["code"] for error in bench.content(done["error_file_id"])} == {"input_file_gone"}
    (error,) = bench.get(unread)["errors"]["data"]
    assert (bench.get(unread)["status"], error["code"]) == ("failed", "input_file_gone")
