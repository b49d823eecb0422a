"""The response fields `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11)."""

from typing import Final

from flask import Response, g, has_request_context

from penstock.quotas.policies import Policy, Standing

_NOTED: Final = "quota_standings"


def note(standing: Standing) -> None:
    """Have the answer to this request say how that policy stands."""
    if has_request_context():
        g.setdefault(_NOTED, {})[standing.policy.name] = standing


def add_fields(response: Response) -> Response:
    """Tell of every policy that this request was held to."""
    noted: dict[str, Standing] = g.get(_NOTED, {})
    if noted:
        response.headers["RateLimit-Policy"] = ", ".join(_policy(standing.policy) for standing in noted.values())
        response.headers["RateLimit"] = ", ".join(_standing(standing) for standing in noted.values())
    return response


def _policy(policy: Policy) -> str:
    window = f";w={policy.window}" if policy.window is not None else ""
    return f'"{policy.name}";q={policy.quota};qu="{policy.unit}"{window}'


def _standing(standing: Standing) -> str:
    reset = f";t={standing.reset}" if standing.policy.window is not None else ""
    return f'"{standing.policy.name}";r={standing.remaining}{reset}'
