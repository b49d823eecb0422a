"""Between the messages of the pipe and the engine's own types."""

import msgspec
from penstock_engine import Grammar, PromptLogprobs, Request, SamplingParams, TokenDelta

from penstock_worker.messages import Delta, PromptScores, Submit


def request_from(submit: Submit) -> Request:
    """What the engine is to run."""
    given = submit.sampling
    grammar = None if given.grammar is None else Grammar(given.grammar.kind, given.grammar.source)  # type: ignore[arg-type]  # compiling checks the kind
    return Request(
        id=submit.request_id,
        prompt_ids=submit.prompt_ids,
        sampling=SamplingParams(**(msgspec.structs.asdict(given) | {"grammar": grammar})),
        output_ids=submit.output_ids,
        closed=frozenset(submit.closed),
        namespace=submit.namespace,
        priority=submit.priority,
        request_class=submit.request_class,  # type: ignore[arg-type]  # the engine's submit() checks it
        tenant=submit.tenant,
        weight=submit.weight,
        deadline=submit.deadline,
        token_budget=submit.token_budget,
        scored_from=submit.scored_from,
    )


def delta_of(delta: TokenDelta) -> Delta:
    """One token, for the worker."""
    return Delta(delta.request_id, delta.choice, delta.token_id, delta.logprob, delta.finish_reason, delta.top_logprobs)


def scores_of(scores: PromptLogprobs) -> PromptScores:
    """A prompt's log probabilities, for the worker."""
    own, ids, tops = scores.own.tobytes(), scores.ids.tobytes(), scores.tops.tobytes()
    return PromptScores(scores.request_id, scores.start, own, ids, tops)
