"""What a rollout's move means for gates, routes and jobs: all of it in the move's own transaction.

    promoted                       new jobs go to the candidate, and MLflow's alias follows; the old version stays warm
    rejected, rolled back, aborted new jobs go to the champion, and so do those that wait for the candidate
    anything else                  the candidate's share of new jobs is that of the gate, while a worker has it ready

Locks are taken in this order: the rollout's row, its model's route, rows of jobs, counters.
"""

from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.registry.models import Deployment, RoutingPolicy
from penstock.registry.readiness import standing_of
from penstock.rollouts.gates import GATES
from penstock.rollouts.models import Rollout
from penstock.rollouts.policy import Policy, StartedJobs
from penstock.rollouts.rerouting import Rerouted, Way, reroute
from penstock.rollouts.states import Move, Position, State, stage, touched
from penstock.routing.succession import Candidate, Readiness

ENDS: Final = (State.REJECTED, State.ROLLED_BACK, State.ABORTED)
NOT_READY: Final = "no live worker has the candidate ready"


def follow_through(session: Session, rollout: Rollout, how: Move, before: Position, policy: Policy) -> Rerouted:
    """Do what the move means that led from `before` to where the rollout stands now.

    Answers with the jobs that were sent to the champion.
    """
    after = rollout.position
    route = _locked_route(session, rollout.model_name)
    _change_gates(session, rollout, before, after, policy)
    open_share(session, rollout, policy)
    if after.state is State.PROMOTED:
        _keep_warm(session, rollout, policy)
    if after.state is State.PROMOTED and how is not Move.ADOPT:  # there the alias was first, and the route follows it
        _point(session, route, rollout.candidate_id, f"rollout {rollout.id} promoted it")
    if after.state not in ENDS:
        return Rerouted()
    if before.state is State.PROMOTED:
        _take_back(session, rollout, route)
    rollout.clearing = True
    session.flush()
    return send_back(session, rollout, route, policy)


def open_share(session: Session, rollout: Rollout, policy: Policy) -> Candidate:
    """Give the candidate its gate's share of new jobs, or none while no live worker has it ready, and note why."""
    candidate = standing_of(session, session.get_one(Deployment, rollout.candidate_id))
    takes = candidate.readiness is Readiness.READY or not rollout.position.state.serves
    rollout.share = touched(rollout.position, policy) if takes else 0.0
    rollout.note = None if takes else f"{NOT_READY}: {candidate.error or candidate.readiness}"
    session.flush()
    return candidate


def send_back(session: Session, rollout: Rollout, route: RoutingPolicy, policy: Policy) -> Rerouted:
    """Move jobs that wait for the candidate of a rollout that has ended to its model's champion, if it is not that."""
    way = way_back(session, rollout, route, policy)
    return Rerouted() if way is None else reroute(session, way)


def way_back(session: Session, rollout: Rollout, route: RoutingPolicy, policy: Policy) -> Way | None:
    """From the candidate of a rollout that has ended to its model's champion; None where they are the same."""
    if route.champion_id == rollout.candidate_id:
        return None
    return Way(
        source=session.get_one(Deployment, rollout.candidate_id),
        target=session.get_one(Deployment, route.champion_id or rollout.champion_id),
        rollout_id=rollout.id,
        reason=f"the rollout of version {_version(session, rollout.candidate_id)} was {_ENDED[State(rollout.state)]}",
        anew=policy.started_jobs is StartedJobs.RESTART,
    )


_ENDED: Final = {State.REJECTED: "rejected", State.ROLLED_BACK: "rolled back", State.ABORTED: "aborted"}


def _change_gates(session: Session, rollout: Rollout, before: Position, after: Position, policy: Policy) -> None:
    left, entered = stage(before), stage(after)
    if left is entered:
        return
    if left in GATES:
        GATES[left].end(session, rollout, policy)
    if entered in GATES:
        GATES[entered].begin(session, rollout, policy)


def _keep_warm(session: Session, rollout: Rollout, policy: Policy) -> None:
    """The old version stays hosted, so that the promotion can be taken back in one step."""
    until = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, policy.keep_warm)
    session.get_one(Deployment, rollout.champion_id).keep_warm_until = session.scalars(select(until)).one()


def _take_back(session: Session, rollout: Rollout, route: RoutingPolicy) -> None:
    """A promotion is undone: the old version serves at once, from wherever it is still warm."""
    if route.champion_id != rollout.candidate_id:
        return
    _point(session, route, rollout.champion_id, f"rollout {rollout.id} was taken back")
    session.get_one(Deployment, rollout.champion_id).state = "active"


def _point(session: Session, route: RoutingPolicy, deployment_id: str, why: str) -> None:
    version = _version(session, deployment_id)
    route.champion_id, route.incoming_id, route.alias_to = deployment_id, None, version
    route.champion_since = session.scalars(select(func.clock_timestamp())).one()
    # MLflow hears of it from the synchroniser.
    route.reason = f"version {version} serves: {why}"
    session.flush()


def _version(session: Session, deployment_id: str) -> str:
    return session.get_one(Deployment, deployment_id).model_version


def _locked_route(session: Session, model_name: str) -> RoutingPolicy:
    locked = select(RoutingPolicy).where(RoutingPolicy.model_name == model_name).with_for_update(key_share=True)
    return session.scalars(locked.execution_options(populate_existing=True)).one()
