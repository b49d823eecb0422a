"""What rollouts decide, told to MLflow: tags on the version that was judged, and each gate's figures as a run.

The ledger is the truth, and each rollout remembers up to where it was told. A decision may be told twice, which changes
nothing: tags are set to the same, and a run is found by its decision.
"""

import math
import time
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from penstock.errors import ModelNotFound, ValidationFailed
from penstock.logs import get_logger
from penstock.registry.mlflow_api import MlflowApi
from penstock.registry.registration import EXPERIMENT
from penstock.registry.version_tags import DIGEST_TAG
from penstock.rollouts.models import Decision, Rollout

ROLLOUT_TAG: Final = "penstock.rollout"
DECISION_TAG: Final = "penstock.decision"
_MOST_AT_ONCE: Final = 20
_LONGEST_PARAMETER: Final = 6000
log = get_logger(__name__)


def tell_mlflow(session: Session, api: MlflowApi) -> None:
    """Tell what was not told yet, in order. Raises `ServiceUnavailable`; what was told by then is told again."""
    untold = (
        select(Decision)
        .join(Rollout, Rollout.id == Decision.rollout_id)
        .where(Decision.number > Rollout.told)
        .order_by(Decision.decided_at, Decision.id)
        .limit(_MOST_AT_ONCE)
    )
    told: dict[str, int] = {}
    for decision in session.scalars(untold).all():
        _tell(api, decision)
        assert decision.rollout_id is not None
        told[decision.rollout_id] = decision.number
    # Only now, so that no rollout is locked while MLflow is asked.
    for rollout_id, number in sorted(told.items()):
        session.execute(update(Rollout).where(Rollout.id == rollout_id, Rollout.told < number).values(told=number))


def _tell(api: MlflowApi, decision: Decision) -> None:
    version = decision.artifacts["candidate"]["version"]
    try:
        api.set_tag(decision.model_name, version, ROLLOUT_TAG, str(decision.rollout_id))
        api.set_tag(decision.model_name, version, DECISION_TAG, f"{decision.id} {decision.move}: {decision.to_state}")
        if decision.judgement is not None:
            _write_run(api, decision, version)
    except (ModelNotFound, ValidationFailed) as error:  # the version was deleted there; the ledger has it all
        log.warning("registry.decision_not_told", decision=decision.id, reason=error.message)


def _write_run(api: MlflowApi, decision: Decision, version: str) -> None:
    experiment = _experiment(api)
    run = _run(api, experiment, decision, f"{decision.model_name}:{version} {decision.from_state}: {decision.move}")
    if run["info"]["status"] == "FINISHED":
        return
    run_id = run["info"]["run_id"]
    logged = _logged_model(api, experiment, decision)
    if logged is not None:
        api.ask("POST", "runs/log-inputs", json={"run_id": run_id, "models": [{"model_id": logged}]})
    metrics = [{"key": key, "value": value, "timestamp": _now(), "step": 0} for key, value in _figures(decision)]
    params = [{"key": key, "value": value[:_LONGEST_PARAMETER]} for key, value in _parameters(decision, version)]
    api.ask("POST", "runs/log-batch", json={"run_id": run_id, "metrics": metrics, "params": params})
    api.ask("POST", "runs/update", json={"run_id": run_id, "status": "FINISHED", "end_time": _now()})


def _experiment(api: MlflowApi) -> str:
    try:
        found = api.ask("GET", "experiments/get-by-name", params={"experiment_name": EXPERIMENT})
        return str(found["experiment"]["experiment_id"])
    except ModelNotFound:
        return str(api.ask("POST", "experiments/create", json={"name": EXPERIMENT})["experiment_id"])


def _run(api: MlflowApi, experiment: str, decision: Decision, name: str) -> dict[str, Any]:
    """The run of the decision: found by its tag, or begun."""
    mine = {"experiment_ids": [experiment], "filter": f"tags.`{DECISION_TAG}` = '{decision.id}'", "max_results": 1}
    found = api.ask("POST", "runs/search", json=mine).get("runs", [])
    if found:
        return dict(found[0])
    tags = [{"key": DECISION_TAG, "value": decision.id}, {"key": ROLLOUT_TAG, "value": decision.rollout_id}]
    asked = {"experiment_id": experiment, "run_name": name, "start_time": _now(), "tags": tags}
    return dict(api.ask("POST", "runs/create", json=asked)["run"])


def _logged_model(api: MlflowApi, experiment: str, decision: Decision) -> str | None:
    """The id of the candidate's logged model, found by its files: MLflow's registry does not tell it."""
    digest = decision.artifacts["candidate"]["digest"]
    wanted = f"tags.`{DIGEST_TAG}` = '{digest}' AND name = '{decision.model_name}'"
    asked = {"experiment_ids": [experiment], "filter": wanted, "max_results": 1}
    found = api.ask("POST", "logged-models/search", json=asked).get("models", [])
    return str(found[0]["info"]["model_id"]) if found else None


def _figures(decision: Decision) -> Iterator[tuple[str, float]]:
    """Every finite figure of every reason; MLflow takes no others in JSON."""
    assert decision.judgement is not None
    for reason in decision.judgement["reasons"]:
        for name, value in reason["figures"].items():
            if math.isfinite(float(value)):
                yield f"{reason['name']}.{name}", float(value)


def _parameters(decision: Decision, version: str) -> Iterator[tuple[str, str]]:
    assert decision.judgement is not None
    yield "rollout", str(decision.rollout_id)
    yield "version", version
    yield "champion", decision.artifacts["champion"]["version"]
    yield "policy_version", str(decision.policy_version)
    yield "gate", f"{decision.from_state} {decision.from_step}"
    yield "verdict", decision.judgement["verdict"]
    for reason in decision.judgement["reasons"]:
        yield reason["name"], reason["text"]


def _now() -> int:
    return int(time.time() * 1000)
