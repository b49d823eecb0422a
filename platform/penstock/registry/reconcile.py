"""Bringing our tables to what MLflow's aliases say: deployments, routes, and which versions workers should host.

Runs in one transaction of the one process that was elected. Nothing here asks MLflow. Rollouts and routes are locked
before they are read, in the order in which rollouts' own moves lock them: a promotion that commits meanwhile is seen,
not overwritten.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import func, select
from sqlalchemy.orm import Session, defer

from penstock.errors import ModelFolderInvalid
from penstock.ids import new_id
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.logs import get_logger
from penstock.registry.hand_moves import kept_hosted, lock_rollouts, note_gone, note_hand_move
from penstock.registry.hosting_services import live_hostings
from penstock.registry.mlflow_api import RegistryModel, RegistryVersion
from penstock.registry.models import LANE_ID, Deployment, Hosting, RoutingPolicy
from penstock.registry.readiness import candidate_of
from penstock.registry.version_tags import VersionFacts, from_tags
from penstock.routing.succession import NO_ALIAS, Candidate, Route, next_route

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Named:
    """What an alias names: a deployment, or why it cannot be one."""

    deployment: Deployment | None = None
    problem: str | None = None


def reconcile(
    session: Session,
    models: Sequence[RegistryModel],
    *,
    longest: int | None = None,
    written: Mapping[str, str] | None = None,
    revert: bool = False,
) -> None:
    """Make deployments, routing policies and deployment states follow the registry.

    `longest` is the longest context that workers serve, in tokens; None is each model's own. `written` are the
    versions, by model, that the alias `champion` was set to for us just before it was read. With `revert` an alias
    that somebody else has moved is to be set back.
    """
    lock_rollouts(session)
    policies = {policy.model_name: policy for policy in session.scalars(_LOCKED_ROUTES)}
    hostings = _by_deployment(live_hostings(session))
    wanted: set[str] = set()
    for model in models:
        policy = policies.pop(model.name, None)
        if model.followed or policy is not None:
            policy = policy or _new_policy(session, model.name)
            _settle(policy, (written or {}).get(model.name))
            wanted |= _follow(session, model, policy, hostings, longest, revert=revert)
    for policy in policies.values():
        note_gone(session, policy)
        _set_route(policy, Route(None, None, "the model is gone from MLflow"))
        policy.challenger_id, policy.alias_to = None, None
    session.flush()
    _set_states(session, wanted | kept_hosted(session))


_LOCKED_ROUTES = (
    select(RoutingPolicy)
    .order_by(RoutingPolicy.model_name)
    .with_for_update(key_share=True)
    .execution_options(populate_existing=True)
)


def _settle(policy: RoutingPolicy, written: str | None) -> None:
    """The alias was written as the route wants it; what was read since is what somebody wants."""
    if written is not None and policy.alias_to == written:
        policy.alias_to = None


def _follow(
    session: Session,
    model: RegistryModel,
    policy: RoutingPolicy,
    hostings: Mapping[str, Sequence[Hosting]],
    longest: int | None,
    *,
    revert: bool,
) -> set[str]:
    """Route one model; answers with the deployments that workers should host for it."""
    champion = _named(session, model.followed.get("champion"), longest)
    challenger = _named(session, model.followed.get("challenger"), longest)
    if policy.alias_to is None and champion.problem is None:
        note_hand_move(session, policy, champion.deployment, revert=revert)
    served = session.get(Deployment, policy.champion_id) if policy.champion_id else None
    awaited = session.get(Deployment, policy.incoming_id) if policy.incoming_id else None
    candidates = {
        deployment.id: candidate_of(deployment, hostings.get(deployment.id, ()))
        for deployment in (champion.deployment, challenger.deployment, served, awaited)
        if deployment is not None
    }
    route = _route(policy, candidates, champion)
    rival = candidates[challenger.deployment.id] if challenger.deployment else None
    _set_route(policy, replace(route, reason=route.reason + _about_challenger(rival, challenger.problem)))
    policy.challenger_id = rival.id if rival is not None and rival.takes_jobs else None
    ids = (policy.champion_id, policy.incoming_id, rival.id if rival is not None else None)
    return {identity for identity in ids if identity is not None}


def _route(policy: RoutingPolicy, candidates: Mapping[str, Candidate], champion: Named) -> Route:
    if policy.alias_to is not None:
        waits = f"the alias champion is to be set to version {policy.alias_to} in MLflow"
        return Route(policy.champion_id, policy.incoming_id, waits)
    if champion.problem is not None:
        return Route(policy.champion_id, None, f"{champion.problem}; the alias champion is not followed there")
    if champion.deployment is None:
        return Route(None, None, NO_ALIAS)
    current = candidates[policy.champion_id] if policy.champion_id else None
    return next_route(current, candidates[champion.deployment.id], policy.incoming_id)


def _about_challenger(rival: Candidate | None, problem: str | None) -> str:
    if problem is not None:
        return f"; of the challenger, {problem}"
    if rival is None or rival.takes_jobs:
        return ""
    return f"; the challenger, version {rival.version}, takes no jobs: {rival.error or 'no worker has loaded it yet'}"


def _set_route(policy: RoutingPolicy, route: Route) -> None:
    if policy.champion_id != route.serving:
        log.info("routing.champion_changed", model=policy.model_name, to=route.serving, reason=route.reason)
        policy.champion_since = func.clock_timestamp() if route.serving else None
    elif policy.reason != route.reason:
        log.info("routing.reason_changed", model=policy.model_name, reason=route.reason)
    policy.champion_id, policy.incoming_id, policy.reason = route.serving, route.incoming, route.reason


def _new_policy(session: Session, name: str) -> RoutingPolicy:
    policy = RoutingPolicy(model_name=name, reason=NO_ALIAS)
    session.add(policy)
    return policy


def _named(session: Session, version: RegistryVersion | None, longest: int | None) -> Named:
    """The deployment of the version, made or brought up to date."""
    if version is None:
        return Named()
    if any(character in version.model_name for character in ":@"):
        return Named(problem="its name holds : or @, which stand for a version or an alias in a job's `model`")
    try:
        facts = from_tags(version.tags).within(longest)
    except ModelFolderInvalid as error:
        return Named(problem=f"version {version.number} is not usable: {error.message}")
    return Named(_known(session, version, facts) or _new_deployment(session, version, facts))


def _known(session: Session, version: RegistryVersion, facts: VersionFacts) -> Deployment | None:
    deployment = session.scalars(
        select(Deployment).where(
            Deployment.model_name == version.model_name,
            Deployment.model_version == version.number,
            Deployment.digest == facts.digest,
        )
    ).one_or_none()
    if deployment is not None:
        deployment.source, deployment.context_length = str(facts.source), facts.context_length
    return deployment


def _new_deployment(session: Session, version: RegistryVersion, facts: VersionFacts) -> Deployment:
    deployment = Deployment(
        id=new_id("dep"),
        model_name=version.model_name,
        model_version=version.number,
        source=str(facts.source),
        manifest=facts.manifest,
        recipe=facts.recipe,
        context_length=facts.context_length,
        digest=facts.digest,
    )
    session.add(deployment)
    session.flush()
    log.info("deployment.added", model=version.model_name, version=version.number, deployment=deployment.id)
    return deployment


def _by_deployment(hostings: Iterable[Hosting]) -> dict[str, list[Hosting]]:
    found: dict[str, list[Hosting]] = {}
    for hosting in hostings:
        found.setdefault(hosting.deployment_id, []).append(hosting)
    return found


def _set_states(session: Session, wanted: Collection[str]) -> None:
    """Wanted deployments are active; others drain until their last job has ended, then retire.

    A retired one is looked at again each time: a submit that chose it may commit after it retired.
    """
    busy = select(Job.id).where(Job.deployment_id == Deployment.id, Job.state.in_((JobState.QUEUED, JobState.RUNNING)))
    every = select(Deployment, busy.exists()).where(Deployment.id != LANE_ID).options(defer(Deployment.manifest))
    for deployment, is_busy in session.execute(every):
        state = _state(deployment, deployment.id in wanted, is_busy)
        if state != deployment.state:
            log.info(
                "deployment.state_changed",
                model=deployment.model_name,
                version=deployment.model_version,
                deployment=deployment.id,
                state=state,
            )
            deployment.state = state


def _state(deployment: Deployment, wanted: bool, busy: bool) -> str:
    if wanted:
        return "active"
    # The one that just stopped being wanted drains for one turn at least: jobs may be on their way to it.
    return "draining" if busy or deployment.state == "active" else "retired"
