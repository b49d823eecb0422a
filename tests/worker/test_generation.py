"""What a job may ask of its generation, through a real worker: choices, candidates, structure, scores, and crashes."""

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from penstock.db import Database
from penstock.jobs.models import Job
from penstock.jobs.states import RunOutcome
from penstock.registry.tokenizer import ModelTokenizer
from penstock.settings import Settings
from penstock_engine import Engine, EngineConfig

from tests.patience import eventually
from tests.worker.world import DEMANDING, SAMPLED, World, assert_same_output, open_world

SCHEMA = {
    "type": "object",
    "properties": {"zebra": {"type": "integer", "maximum": 99, "minimum": 10}, "ant": {"enum": ["x", "yy"]}},
    "required": ["zebra", "ant"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


@pytest.fixture(scope="module")
def world(
    settings: Settings, migrated: Database, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with open_world(settings, migrated, model_folder, tmp_path_factory.mktemp("worker")) as opened:
        yield opened


def choices_of(job: Job) -> list[dict[str, Any]]:
    assert job.state == "succeeded", job.error
    assert job.output is not None
    assert [choice["index"] for choice in job.output["choices"]] == list(range(len(job.output["choices"])))
    return list(job.output["choices"])


def texts_of(job: Job) -> list[str]:
    return [choice["text"] for choice in choices_of(job)]


def assert_whole(world: World, job: Job) -> None:
    """The journal is the output: every token of each choice once, in order, each end last, and all counted."""
    entries = [entry for entry in world.journal(job.id) if entry.prompt is None]
    for choice in choices_of(job):
        own = [entry for entry in entries if entry.choice == choice["index"]]
        assert [entry.index for entry in own] == list(range(len(own)))
        assert [entry.token_id for entry in own] == [*choice["token_ids"], None]
        assert "".join(entry.text for entry in own) == choice["text"]
        assert own[-1].finish_reason == choice["finish_reason"]
    assert len(entries) == sum(len(choice["token_ids"]) + 1 for choice in choices_of(job))


def test_choices_are_generated_side_by_side_and_counted_together(world: World) -> None:
    alone = world.run(params=SAMPLED | {"max_tokens": 40})
    several = world.run(params=SAMPLED | {"max_tokens": 40, "n": 3})
    assert len(set(texts_of(several))) == 3
    assert choices_of(several)[0] == choices_of(alone)[0]
    assert several.output_tokens == 3 * 40
    assert_whole(world, several)


def test_a_stop_string_ends_its_choice_and_no_other(world: World) -> None:
    params = SAMPLED | {"max_tokens": 60, "n": 3}
    whole = choices_of(world.run(params=params))
    text = whole[1]["text"]
    stop = next(
        text[at : at + 5] for at in range(20, 50) if not any(text[at : at + 5] in whole[i]["text"] for i in (0, 2))
    )
    job = world.run(params=params | {"stop": [stop]})
    assert texts_of(job) == [whole[0]["text"], text[: text.index(stop)], whole[2]["text"]]
    assert [choice["finish_reason"] for choice in choices_of(job)] == ["length", "stop", "length"]
    assert len(choices_of(job)[1]["token_ids"]) < 60
    assert all(stop not in entry.text for entry in world.journal(job.id))
    assert_whole(world, job)


@pytest.mark.parametrize("stop", [[], [" "]], ids=["to the end", "to a stop string"])
def test_the_likeliest_candidates_are_told_and_all_are_counted(world: World, stop: list[str]) -> None:
    params = SAMPLED | {"max_tokens": 30, "stop": stop, "logprobs": True}
    every = world.run(params=params | {"n": 4})
    ranked = sorted(
        choices_of(every), key=lambda choice: sum(token["logprob"] for token in choice["logprobs"]), reverse=True
    )
    best = world.run(params=params | {"n": 2, "best_of": 4})
    assert [choice | {"index": 0} for choice in choices_of(best)] == [choice | {"index": 0} for choice in ranked[:2]]
    assert best.output_tokens == every.output_tokens
    unscored = world.run(params=params | {"n": 2, "best_of": 4, "logprobs": False})
    assert texts_of(unscored) == texts_of(best)
    assert all("logprobs" not in choice for choice in choices_of(unscored))
    assert_whole(world, best)


def test_structure_is_held_to(world: World) -> None:
    def run(wanted: dict[str, Any]) -> list[str]:
        job = world.run(params={"seed": 3, "temperature": 2.0, "n": 3, "max_tokens": 60, "response_format": wanted})
        assert {choice["finish_reason"] for choice in choices_of(job)} == {"stop"}
        return texts_of(job)

    for text in run({"type": "json_schema", "schema": SCHEMA}):
        assert list(json.loads(text)) == ["zebra", "ant"]  # the schema's order, not the alphabet's
        assert 10 <= json.loads(text)["zebra"] <= 99
    assert all(
        re.fullmatch("(ab|ba){2,3}-[0-9]{4}", text) for text in run({"type": "regex", "regex": "(ab|ba){2,3}-[0-9]{4}"})
    )
    assert set(run({"type": "choice", "choice": ["Müller", "a+b"]})) <= {"Müller", "a+b"}
    assert all(re.fullmatch("x+", text) for text in run({"type": "lark", "lark": 'start: "x" | "x" "x"'}))


def test_penalties_and_biases_reach_the_engine(world: World) -> None:
    greedy = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 60}
    plain = choices_of(world.run(params=greedy))[0]["token_ids"]
    token, count = Counter(plain).most_common(1)[0]
    assert count > 2
    banned = choices_of(world.run(params=greedy | {"logit_bias": {str(token): -100}}))[0]["token_ids"]
    assert token not in banned
    for penalty in ({"repetition_penalty": 2.0}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        punished = choices_of(world.run(params=greedy | penalty))[0]["token_ids"]
        assert punished != plain
    hot = {"temperature": 50.0, "seed": 1, "ignore_eos": True, "max_tokens": 20}
    assert choices_of(world.run(params=hot | {"min_p": 1.0}))[0]["token_ids"] == plain[:20]


def test_a_score_tells_how_likely_the_prompt_is_and_generates_nothing(world: World, model_folder: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(model_folder)
    engine = Engine.from_folder(model_folder, EngineConfig(max_running=1, kv_bytes=2**25, threads=1))
    ids = tokenizer.encode_input({"prompt": "Invoice 12, total 7.50 EUR"})
    job = world.run("Invoice 12, total 7.50 EUR", kind="score", params={"prompt_logprobs": 2})
    output = job.output or {}

    told = [token["logprob"] for token in output["prompt_logprobs"]]
    assert told[1:] == pytest.approx(engine.score(ids), abs=1e-3)
    assert (told[0], [len(token["top_logprobs"]) for token in output["prompt_logprobs"]][:3]) == (None, [0, 2, 2])
    assert output["score"] == {"tokens": len(ids) - 1, "logprob": pytest.approx(sum(told[1:]))}
    assert choices_of(job) == [{"index": 0, "text": "", "token_ids": [], "finish_reason": "length"}]
    assert (job.prompt_tokens, job.output_tokens) == (len(ids), 0)
    assert (job.account or {})["computed_tokens"] + job.cached_tokens == len(ids) - 1
    assert_whole(world, job)


def test_a_continuation_alone_is_scored_by_what_is_before_it(world: World, model_folder: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(model_folder)
    engine = Engine.from_folder(model_folder, EngineConfig(max_running=1, kv_bytes=2**25, threads=1))
    given = {"prompt": "Acme Ltd, invoice 4711, tot", "continuation": "al 12.50 EUR"}
    ids = tokenizer.encode_input(given)
    start = tokenizer.scored_from(given, ids)
    by_text = world.jobs.finished(world.jobs.submit_input(given, kind="score"))
    split = {"token_ids": ids[:start], "continuation_token_ids": ids[start:]}
    by_ids = world.jobs.finished(world.jobs.submit_input(split, kind="score"))

    for job in (by_text, by_ids):
        output = job.output or {}
        told = [token["logprob"] for token in output["prompt_logprobs"]]
        assert told[:start] == [None] * start
        assert told[start:] == pytest.approx(engine.score(ids, start), abs=1e-3)
        assert output["score"]["tokens"] == len(ids) - start
    assert by_ids.cached_tokens > 0, "the prompt was there already"


def test_a_score_may_fill_the_context(world: World) -> None:
    full = [5 + place % 40 for place in range(world.deployment.context_length)]
    job = world.jobs.finished(world.jobs.submit_input({"token_ids": full}, kind="score"))
    assert (job.output or {})["score"]["tokens"] == len(full) - 1


def test_log_probabilities_of_output_and_prompt_are_told(world: World, model_folder: Path) -> None:
    params = {"temperature": 0.0, "max_tokens": 4, "logprobs": True, "top_logprobs": 3, "prompt_logprobs": 2, "n": 2}
    job = world.run("Invoice 12", params=params | {"ignore_eos": True})
    prompt = ModelTokenizer.from_folder(model_folder).encode_input({"prompt": "Invoice 12"})
    scored = (job.output or {})["prompt_logprobs"]
    assert [token["token_id"] for token in scored] == prompt
    assert scored[0]["logprob"] is None
    engine = Engine.from_folder(model_folder, EngineConfig(max_running=1, kv_bytes=2**25, threads=1))
    assert [token["logprob"] for token in scored[1:]] == pytest.approx(engine.score(prompt), abs=1e-3)
    assert [len(token["top_logprobs"]) for token in scored] == [0, *[2] * (len(prompt) - 1)]
    for choice in choices_of(job):
        assert [token["token_id"] for token in choice["logprobs"]] == choice["token_ids"]
        for token in choice["logprobs"]:
            assert token["top_logprobs"][0] == {"token_id": token["token_id"], "logprob": token["logprob"]}
            assert len(token["top_logprobs"]) == 3
    assert world.journal(job.id)[0].prompt is not None
    assert_whole(world, job)


def test_a_budget_is_shared_evenly_by_the_choices(world: World) -> None:
    one = world.run("Invoice", params=SAMPLED | {"max_tokens": 1})
    budget = (one.prompt_tokens or 0) + 3 * 7 + 2
    job = world.run("Invoice", params=SAMPLED | {"n": 3}, budget={"tokens": budget})
    assert [len(choice["token_ids"]) for choice in choices_of(job)] == [7, 7, 7]
    assert {choice["finish_reason"] for choice in choices_of(job)} == {"length"}


def test_a_crash_changes_nothing_of_what_is_generated(world: World) -> None:
    """Choices, penalties, structure and candidates, all in an engine that is killed."""
    undisturbed = {kind: world.run(params=params) for kind, params in DEMANDING.items()}
    (engine,) = world.worker.children
    os.kill(engine, signal.SIGSTOP)
    ids = {kind: world.jobs.submit(params=params) for kind, params in DEMANDING.items()}
    eventually(lambda: all(world.jobs.get(job_id).state == "running" for job_id in ids.values()), "all to run")
    os.kill(engine, signal.SIGCONT)
    world.tokens_in_flight(ids["choices"], 60)
    os.kill(engine, signal.SIGKILL)
    for kind, job_id in ids.items():
        job = world.jobs.finished(job_id)
        assert_same_output(job, undisturbed[kind])
        assert_whole(world, job)
        assert [run.outcome for run in world.jobs.runs(job_id)] == [RunOutcome.CRASHED, RunOutcome.FINISHED]
        scored = sum(entry.prompt is not None for entry in world.journal(job_id))
        assert scored == ("prompt_logprobs" in DEMANDING[kind])


def test_a_choice_that_a_stop_string_ended_stays_ended_after_a_crash(world: World) -> None:
    params = SAMPLED | {"n": 3, "max_tokens": 400}
    whole = choices_of(world.run(params=params))
    text = whole[0]["text"]
    stop = next(
        text[at : at + 6] for at in range(40, 200) if not any(text[at : at + 6] in each["text"] for each in whole[1:])
    )
    job_id = world.jobs.submit(params=params | {"stop": [stop]})
    world.tokens_in_flight(job_id, 300)  # the first choice has ended by then
    (engine,) = world.worker.children
    os.kill(engine, signal.SIGKILL)
    job = world.jobs.finished(job_id)
    assert texts_of(job) == [text[: text.index(stop)], whole[1]["text"], whole[2]["text"]]
    assert len(world.jobs.runs(job_id)) == 2
    assert {entry.fence for entry in world.journal(job_id) if entry.choice == 0} == {1}
    assert_whole(world, job)
