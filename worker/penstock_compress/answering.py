"""Greedy answers by an engine, and how many tokens a second it generates."""

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Final

from penstock_engine import Engine, Request, SamplingParams

from penstock_compress.distances import Scored
from penstock_compress.errors import EvaluationFailed
from penstock_compress.evaluation_data import Question

AT_ONCE: Final = 32  # requests of a round
TOKENS: Final = 64  # that each generates
ROUNDS: Final = 3  # of each engine, that count
LONGEST_PROMPT: Final = 256


def answers(
    engine: Engine, questions: Sequence[Question], told: Callable[[], None], *, backwards: bool = False
) -> list[list[int]]:
    """The tokens of each greedy answer, without the one that ends it.

    `backwards` asks in the other order, so that batches are others. Raises EvaluationFailed, EngineError.
    """
    order = range(len(questions))
    requests = [
        Request(
            str(at),
            list(questions[at].prompt),
            SamplingParams(temperature=0, max_tokens=questions[at].most_tokens, logprobs=None),
            namespace=f"answers {backwards}",
        )
        for at in (reversed(order) if backwards else order)
    ]
    return run(engine, requests, told)


def run(engine: Engine, requests: Sequence[Request], told: Callable[[], None]) -> list[list[int]]:
    """Each request's tokens, in the order of their ids, which count from 0."""
    found: list[list[int]] = [[] for _ in requests]
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        output = engine.step()
        if output.failed:
            raise EvaluationFailed(f"the engine failed on an answer: {output.failed[0].message}")
        for delta in output.deltas:
            if delta.finish_reason != "stop":
                found[int(delta.request_id)].append(delta.token_id)
            if delta.finish_reason is not None:
                told()
    return found


def speeds(engines: Sequence[Engine], texts: Sequence[Scored], told: Callable[[], None]) -> list[float]:
    """Tokens a second of each engine: the median of ROUNDS, taken in turns, every other time backwards.

    A round is AT_ONCE requests of TOKENS tokens each, whatever they say, prefill included. The first does not count.
    """
    found: list[list[float]] = [[] for _ in engines]
    for turn in range(ROUNDS + 1):
        for at in list(range(len(engines)))[:: -1 if turn % 2 else 1]:
            found[at].append(_round(engines[at], texts, turn))
            told()
    return [median(each[1:]) for each in found]


def _round(engine: Engine, texts: Sequence[Scored], turn: int) -> float:
    tokens = min(TOKENS, engine.max_model_len // 2)
    room = min(LONGEST_PROMPT, engine.max_model_len - tokens)
    prompts = [list(text.tokens[: min(room, max(text.start, len(text.tokens) // 2))]) for text in texts[:AT_ONCE]]
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=None)
    requests = [
        Request(str(at), prompts[at % len(prompts)], sampling, namespace=f"speed {turn} {at}") for at in range(AT_ONCE)
    ]
    began = perf_counter()
    run(engine, requests, _nobody)
    return AT_ONCE * tokens / (perf_counter() - began)


def _nobody() -> None:
    """Told, and does not mind."""
