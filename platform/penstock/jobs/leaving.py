"""Which waiting jobs leave a version that has lost its rollout: SQL that those who move them and those who claim share.

It leaves what was sent to the version by the rollout, or by the model's bare name while it was the champion; who named
the version, or the alias `challenger`, gets what they named. A job that waits because one of its runs ended has begun:
it leaves where nothing of what it generated is kept, or where the policy lets jobs begin anew. One that the champion's
context does not hold stays.
"""

from typing import Final


def leaves(rollout_id: str, context_length: str, anew: str) -> str:
    """Whether a row of `job` is to leave; the arguments are SQL: the rollout, the champion's context, begin anew."""
    return f"""(
        {sent_by(rollout_id)}
        AND coalesce(job.prompt_tokens, 0) + coalesce(CAST(job.params ->> 'max_tokens' AS integer), 1)
            <= {context_length}
        AND ({anew} OR NOT EXISTS (SELECT FROM job_journal WHERE job_id = job.id AND length > 0))
    )"""


def sent_by(rollout_id: str) -> str:
    """Whether a row of `job` was sent where it is by the rollout, or by its model's bare name."""
    return f"""(
        (job.routing ->> 'rule' = 'rollout' AND job.routing ->> 'rollout' = {rollout_id})
        OR job.routing ->> 'rule' = 'rerouted'
        OR (job.routing ->> 'rule' = 'alias' AND job.routing ->> 'alias' = 'champion')
    )"""


MUST_LEAVE: Final = f"""EXISTS (
    SELECT FROM rollout
    JOIN routing_policy AS route ON route.model_name = rollout.model_name
    JOIN deployment AS champion ON champion.id = coalesce(route.champion_id, rollout.champion_id)
    WHERE rollout.clearing AND rollout.candidate_id = job.deployment_id AND champion.id <> rollout.candidate_id
        AND {leaves("rollout.id", "champion.context_length", "rollout.policy ->> 'started_jobs' = 'restart'")}
)"""
"""Whether a row of `job` waits for a version that has lost, and is about to be moved: nobody may begin it there.

As `rollout.clearing` is set in the verdict's own transaction, this holds from its commit on, also for jobs whose
submits commit later.
"""
