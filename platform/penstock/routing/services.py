"""Choosing the model version of a job, inside the transaction that submits it. MLflow is never asked on the way."""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BindParameter, RowMapping, and_, bindparam, case, or_, select
from sqlalchemy.orm import Session

from penstock.clock import iso
from penstock.errors import ModelNotFound
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.rollouts.assignment import Arm, Assigned, Unit, Who, assign
from penstock.rollouts.models import Rollout
from penstock.rollouts.states import State

_ALIAS: Final[BindParameter[str]] = bindparam("alias")
_POLICY, _VERSION, _ROLLOUT = RoutingPolicy.__table__.c, Deployment.__table__.c, Rollout.__table__.c
_RIVAL: Final = Deployment.__table__.alias("candidate").c
_TRIED: Final = {f"candidate_{column.name}": column for column in _RIVAL}
# One object, so that SQLAlchemy compiles it once; of tables and not of classes, which costs it half as much.
_NAMED: Final = (
    select(
        _POLICY.champion_since,
        *_VERSION,
        *(_ROLLOUT[name].label(f"rollout_{name}") for name in ("id", "state", "step", "share", "unit", "seed")),
        *(column.label(name) for name, column in _TRIED.items()),
    )
    .select_from(RoutingPolicy.__table__)
    .join(
        Deployment.__table__,
        _VERSION.id
        == case((_ALIAS == "champion", _POLICY.champion_id), (_ALIAS == "challenger", _POLICY.challenger_id)),
    )
    # A rollout against a version that does not serve (any more) has nothing to compare with.
    .outerjoin(
        Rollout.__table__,
        and_(
            _ALIAS == "champion",
            _ROLLOUT.model_name == _POLICY.model_name,
            _ROLLOUT.champion_id == _POLICY.champion_id,
            _ROLLOUT.state.in_((State.SHADOW, State.CANARY, State.AB)),
            _ROLLOUT.share > 0,
        ),
    )
    .outerjoin(_RIVAL.id.table, and_(_RIVAL.id == _ROLLOUT.candidate_id, _RIVAL.state == "active"))
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
    return Route(deployment, reason, _trial(found) if found["candidate_id"] is not None else None)


def _trial(found: RowMapping) -> Trial:
    return Trial(
        rollout_id=found["rollout_id"],
        stage=State(found["rollout_state"]),
        step=found["rollout_step"],
        share=found["rollout_share"],
        unit=Unit(found["rollout_unit"]),
        seed=found["rollout_seed"],
        candidate=Deployment(**{column.name: found[name] for name, column in _TRIED.items()}),
    )


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
