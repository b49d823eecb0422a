"""The form that starts a rollout: which versions may begin one, and what was asked for. Changes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from penstock.errors import InvalidJson, PenstockError, ValidationFailed
from penstock.portal.fields import errors_of
from penstock.problems import explain_validation, refuse_field
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.rollouts.models import UNDER_WAY, Rollout
from penstock.rollouts.policy import Policy, read_policy
from penstock.rollouts.schemas import RolloutRequest

FIELDS: Final = ("candidate", "which", "policy", "reason")
_SHOWN_AT: Final = {"model": "candidate", "version": "candidate"}


class Which(StrEnum):
    """By which policy a rollout begins."""

    OWN = "own"
    DEFAULT = "default"
    WRITTEN = "written"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that is deployed beside its model's champion, and whose model has no rollout under way."""

    model: str
    version: str
    scheme: str
    champion: str

    @property
    def name(self) -> str:
        """As commands and the form call it."""
        return f"{self.model}:{self.version}"


def candidates(session: Session) -> list[Candidate]:
    """Every version that may begin a rollout, by model, the newest first."""
    champion = aliased(Deployment)
    busy = select(Rollout.model_name).where(Rollout.state.in_(UNDER_WAY))
    found = session.execute(
        select(Deployment, champion.model_version)
        .join(RoutingPolicy, RoutingPolicy.model_name == Deployment.model_name)
        .join(champion, champion.id == RoutingPolicy.champion_id)
        .where(Deployment.id != champion.id, Deployment.state == "active", Deployment.model_name.not_in(busy))
        .order_by(Deployment.model_name, Deployment.id.desc())
    )
    return [
        Candidate(each.model_name, each.model_version, each.recipe.get("scheme", "none"), serving)
        for each, serving in found
    ]


def asked_for(values: Mapping[str, str]) -> RolloutRequest:
    """What the form's fields hold, by the API's own checks. Raises `ValidationFailed` and `InvalidJson`."""
    if not values["reason"]:
        raise refuse_field("reason", "is empty", "say why, for the record")
    model, _, version = values["candidate"].rpartition(":")
    policy = _asked_policy(which_of(values), values["policy"])
    try:
        return RolloutRequest(model=model, version=version, policy=policy, reason=values["reason"])
    except ValidationError as error:
        raise explain_validation(error) from None


def errors_at(error: PenstockError) -> dict[str, str]:
    """The form's errors by field. Raises the error itself where no form can mend it."""
    return {_SHOWN_AT.get(name, name): told for name, told in errors_of(error).items()}


def which_of(values: Mapping[str, str]) -> Which:
    """What was chosen; a text without a choice is meant."""
    named = values.get("which", "")
    if named in set(Which):
        return Which(named)
    return Which.WRITTEN if values.get("policy") else Which.OWN


def policy_in(text: str) -> Policy:
    """The policy that a form's field holds. Raises `ValidationFailed` at the field `policy`."""
    if not text:
        raise refuse_field("policy", "is empty", "write one; `{}` is the default policy")
    try:
        return read_policy(text)
    except (InvalidJson, ValidationFailed) as error:
        told = f"at {error.message}" if error.field else error.message  # a path begins it, which keeps its case
        raise ValidationFailed(told, field="policy") from None


def _asked_policy(which: Which, text: str) -> Policy | None:
    """None is the model's own."""
    if which is Which.OWN:
        return None
    return Policy() if which is Which.DEFAULT else policy_in(text)
