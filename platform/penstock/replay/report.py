"""What a replay has found: sums over its comparisons, made by the database. Takes a session, never commits."""

from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from penstock.replay.models import Replay

_FURTHEST: Final = 10

_SCORED: Final = text(
    """
    SELECT count(*) AS answers, sum((scored ->> 'tokens')::integer) AS tokens, avg(mean_kld) AS mean_kld,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY mean_kld) AS median_kld,
        percentile_cont(0.99) WITHIN GROUP (ORDER BY mean_kld) AS p99_kld,
        avg(disagreement) AS disagreement, avg(CASE WHEN disagreement = 0 THEN 1.0 ELSE 0.0 END)::float AS alike,
        avg((scored ->> 'mean_rank')::float) AS mean_rank,
        avg((scored ->> 'logprob_difference')::float) AS logprob_difference
    FROM comparison WHERE replay_id = :id AND state = 'done' AND scored IS NOT NULL
    """
)
_SIDE: Final = """
    avg((free -> '{side}' ->> 'tokens')::float){ok} AS {side}_mean_tokens,
    avg((free -> '{side}' ->> 'seconds')::float){ok} AS {side}_mean_seconds,
    avg((free -> '{side}' ->> 'first_token_seconds')::float){ok} AS {side}_mean_first_token_seconds,
    sum((free -> '{side}' ->> 'device_seconds')::float){ok} AS {side}_device_seconds,
    avg(CASE (free -> '{side}' ->> 'valid')::boolean WHEN true THEN 1.0 WHEN false THEN 0.0 END){ok}::float
        AS {side}_valid
"""
_OK: Final = " FILTER (WHERE free ->> 'error' IS NULL)"
_ANSWERED: Final = text(
    f"""
    SELECT count(*){_OK} AS answers, count(*) FILTER (WHERE free ->> 'error' IS NOT NULL) AS failed,
        avg(CASE WHEN (free ->> 'exact')::boolean THEN 1.0 ELSE 0.0 END){_OK}::float AS exact,
        avg((free ->> 'first_difference')::float) AS mean_first_difference,
        {_SIDE.format(side="stored", ok=_OK)}, {_SIDE.format(side="answered", ok=_OK)}
    FROM comparison WHERE replay_id = :id AND state = 'done' AND free IS NOT NULL
    """  # noqa: S608  # made of constants alone
)
_ERRORS: Final = text(
    """
    SELECT free ->> 'error' AS code, count(*) AS jobs FROM comparison
    WHERE replay_id = :id AND state = 'done' AND free ->> 'error' IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1
    """
)
_PROBLEMS: Final = text(
    """
    SELECT problem, count(*) AS jobs FROM comparison
    WHERE replay_id = :id AND state = 'lost' GROUP BY problem ORDER BY 2 DESC, 1 LIMIT 20
    """
)
_FAR: Final = text(
    """
    SELECT source_id AS job, mean_kld, disagreement FROM comparison
    WHERE replay_id = :id AND state = 'done' AND mean_kld > 0 ORDER BY mean_kld DESC, id LIMIT :most
    """
)


def found_by(session: Session, replay: Replay) -> dict[str, Any]:
    """The members of `ReplayReport` beside the replay itself."""
    which = {"id": replay.id}
    scored = dict(session.execute(_SCORED, which).mappings().one())
    return {
        "scored": scored if scored["answers"] else None,
        "answered": _answered(session, which),
        "problems": [dict(row) for row in session.execute(_PROBLEMS, which).mappings()],
        "furthest": [dict(row) for row in session.execute(_FAR, which | {"most": _FURTHEST}).mappings()],
    }


def _answered(session: Session, which: dict[str, str]) -> dict[str, Any] | None:
    found = dict(session.execute(_ANSWERED, which).mappings().one())
    if not (found["answers"] or found["failed"]):
        return None
    sides = {
        name: {key.removeprefix(f"{side}_"): found[key] for key in found if key.startswith(f"{side}_")}
        for name, side in (("stored", "stored"), ("new", "answered"))
    }
    errors = {row.code: row.jobs for row in session.execute(_ERRORS, which)}
    whole = {name: found[name] for name in ("answers", "failed", "exact", "mean_first_difference")}
    return whole | {"errors": errors} | sides
