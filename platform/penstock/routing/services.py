"""Choosing the model version of a job, inside the transaction that submits it. MLflow is never asked on the way."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import BindParameter, DateTime, bindparam, case, literal_column, or_, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from penstock.clock import iso
from penstock.errors import ModelNotFound
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.rollouts.assignment import Arm, Assigned, Unit, Who, assign
from penstock.rollouts.states import State

_ALIAS: Final[BindParameter[str]] = bindparam("alias")
_POLICY, _VERSION = RoutingPolicy.__table__.c, Deployment.__table__.c
# One column, which is null for nearly every job. A rollout against a version that does not serve (any more) has nothing
# to compare with.
_TRIAL: Final = literal_column(
    f"""(
        SELECT jsonb_build_object(
            'rollout_id', rollout.id, 'stage', rollout.state, 'step', rollout.step, 'share', rollout.share,
            'unit', rollout.unit, 'seed', rollout.seed, 'candidate', to_jsonb(candidate)
        )
        FROM rollout JOIN deployment AS candidate ON candidate.id = rollout.candidate_id
        WHERE rollout.model_name = routing_policy.model_name AND rollout.champion_id = routing_policy.champion_id
        AND rollout.state IN ('{State.SHADOW}', '{State.CANARY}', '{State.AB}')
        AND rollout.share > 0 AND candidate.state = 'active'
    )""",  # noqa: S608  # made of constants alone
    JSONB,
).label("trial")
# One object, so that SQLAlchemy compiles it once; of tables and not of classes, which costs it half as much.
_NAMED: Final = (
    select(_POLICY.champion_since, _TRIAL, *_VERSION)
    .join(
        Deployment.__table__,
        _VERSION.id
        == case((_ALIAS == "champion", _POLICY.champion_id), (_ALIAS == "challenger", _POLICY.challenger_id)),
    )
    .where(_POLICY.model_name == bindparam("name"))
)


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The deployment that a job goes to, as it is now, and why, as the job's document shows it.

    `assignment` is there where the job counts in a rollout.
    """

    deployment: Deployment
    reason: dict[str, Any]
    assignment: Assigned | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """A rollout that a model's new jobs take part in: in the shadow `share` is that of jobs to be scored."""

    rollout_id: str
    stage: State
    step: int
    share: float
    unit: Unit
    seed: str
    candidate: Deployment

    @property
    def serves(self) -> bool:
        """Whether jobs go to the candidate."""
        return self.stage is not State.SHADOW

    def assigned(self, who: Who) -> Assigned | None:
        """The job's arm; none of a job that is not drawn for the shadow."""
        key = who.key(self.unit, self.seed)
        arm = assign(self.seed, self.unit, key or who.job_id, self.share)
        if not self.serves:
            if arm is Arm.CHAMPION:
                return None
            arm = Arm.CHAMPION
        return Assigned(who.job_id, self.rollout_id, self.stage, self.step, arm, self.share, self.unit, key)


@dataclass(frozen=True, slots=True)
class Route:
    """Where jobs that ask for one name go: all to `deployment`, but for those that a rollout gives its candidate."""

    deployment: Deployment
    reason: dict[str, Any]
    trial: Trial | None = None

    @property
    def arms(self) -> tuple[Deployment, ...]:
        """The versions that a job may come to."""
        return (self.deployment, self.trial.candidate) if self.trial and self.trial.serves else (self.deployment,)

    @property
    def plain(self) -> RoutingDecision:
        """For a job that takes part in no rollout."""
        return RoutingDecision(self.deployment, self.reason)

    def decide(self, who: Who) -> RoutingDecision:
        """For this job."""
        assigned = self.trial.assigned(who) if self.trial else None
        if self.trial is None or assigned is None:
            return self.plain
        if not self.trial.serves:
            return RoutingDecision(self.deployment, self.reason, assigned)
        deployment = self.trial.candidate if assigned.arm is Arm.CANDIDATE else self.deployment
        return RoutingDecision(deployment, _reason(assigned, deployment), assigned)


def choose(session: Session, model: str) -> RoutingDecision:
    """Where a job goes that takes part in no rollout: see `find`."""
    return find(session, model).plain


def find(session: Session, model: str) -> Route:
    """Resolve `name`, `name@champion`, `name@challenger` or `name:version`.

    Jobs that ask for the champion take part in a rollout against it. Raises `ModelNotFound`, which names the models
    that there are.
    """
    if ":" in model:
        name, version = model.split(":", 1)
        return _by_version(session, name, version)
    name, _, alias = model.partition("@")
    return _by_alias(session, name, alias or "champion")


def model_name_of(model: str) -> str:
    """The name in `name`, `name@alias` or `name:version`."""
    return model.split(":", 1)[0] if ":" in model else model.partition("@")[0]


def available_models(session: Session) -> list[str]:
    """The names that jobs may ask for."""
    routed = select(RoutingPolicy.model_name).where(RoutingPolicy.champion_id.is_not(None))
    return list(session.scalars(routed.order_by(RoutingPolicy.model_name)))


def _by_version(session: Session, name: str, version: str) -> Route:
    champion = select(RoutingPolicy.champion_id).where(RoutingPolicy.model_name == name).scalar_subquery()
    # A model that was deleted and registered anew can have two of one number for a moment: the newer one is meant.
    deployment = session.scalars(
        select(Deployment)
        .where(
            Deployment.model_name == name,
            Deployment.model_version == version,
            Deployment.state == "active",
            or_(Deployment.first_ready_at.is_not(None), Deployment.id == champion),
        )
        .order_by(Deployment.created_at.desc(), Deployment.id.desc())
        .limit(1)
    ).one_or_none()
    if deployment is None:
        raise ModelNotFound(
            f"no version {version!r} of {name!r} takes jobs; {_what_there_is(session)}",
            field="model",
            available=available_models(session),
        )
    return Route(deployment, {"rule": "version", "version": version})


def _by_alias(session: Session, name: str, alias: str) -> Route:
    found = session.execute(_NAMED, {"name": name, "alias": alias}).mappings().one_or_none()
    if found is None:
        policy = session.get(RoutingPolicy, name)
        raise ModelNotFound(_why_not(session, policy, name, alias), field="model", available=available_models(session))
    deployment = Deployment(**{column.name: found[column] for column in _VERSION})
    since = {"since": iso(found["champion_since"])} if alias == "champion" else {}
    reason = {"rule": "alias", "alias": alias, "version": deployment.model_version, **since}
    trial = found["trial"] if alias == "champion" else None
    return Route(deployment, reason, _trial(trial) if trial is not None else None)


def _trial(found: Mapping[str, Any]) -> Trial:
    candidate = {
        column.name: datetime.fromisoformat(value) if value and isinstance(column.type, DateTime) else value
        for column in _VERSION
        for value in (found["candidate"][column.name],)
    }
    placed = {"stage": State(found["stage"]), "unit": Unit(found["unit"]), "candidate": Deployment(**candidate)}
    return Trial(**(dict(found) | placed))


def _reason(assigned: Assigned, deployment: Deployment) -> dict[str, Any]:
    return {
        "rule": "rollout",
        "rollout": assigned.rollout_id,
        "gate": assigned.stage,
        "step": assigned.step,
        "share": assigned.share,
        "arm": assigned.arm,
        "unit": assigned.unit,
        "version": deployment.model_version,
    }


def _why_not(session: Session, policy: RoutingPolicy | None, name: str, alias: str) -> str:
    if policy is not None and policy.champion_id is None and alias == "champion":
        return f"{name!r} takes no jobs: {policy.reason}; {_what_there_is(session)}"
    return f"no model {name!r} with the alias {alias!r}; {_what_there_is(session)}"


def _what_there_is(session: Session) -> str:
    available = available_models(session)
    return f"models that take jobs: {', '.join(available)}" if available else "no model takes jobs yet"
