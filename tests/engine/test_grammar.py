"""Outputs satisfy their grammar, are drawn from the model's own distribution within it, and disturb nobody."""

import json
import re
import string
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_engine import (
    Engine,
    EngineConfig,
    Grammar,
    InvalidConfig,
    InvalidGrammar,
    InvalidRequest,
    InvalidSampling,
    Request,
    SamplingParams,
    StepFailed,
)
from penstock_engine.config import Overlap
from scipy.stats import chisquare  # type: ignore[import-untyped]  # scipy ships no types
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from tests.engine.driving import Run, greedy, run_all, step_once
from tests.engine.tiny import EOS, VOCABULARY, TinyModel, random_prompt

SPECIALS = [f"<s{at}>" for at in range(EOS)] + ["</s>"]
PIECES = [chr(code) for code in range(33, 127)] + [
    "Ġ",
    "Ċ",
    "true",
    "false",
    "ab",
    "ba",
    "abc",
    '":',
    '{"',
    "12",
    "34",
    "},",
]
assert len(SPECIALS) + len(PIECES) <= VOCABULARY
TEXTS = SPECIALS + [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece in PIECES]

SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "size": {"type": "integer", "minimum": 10, "maximum": 40},
        "tags": {"type": "array", "items": {"enum": ["a", "abc"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["ok", "size", "tags"],
    "additionalProperties": False,
}
GRAMMARS = {
    "json_schema": Grammar("json_schema", json.dumps(SCHEMA)),
    "regex": Grammar("regex", "(ab|ba){2,3}-[0-9]{4}"),
    "lark": Grammar("lark", 'start: "(" start ")" | /[xyz]/'),
    "choice": Grammar("choice", ("abc", "abba", "a+b", "(true)")),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Printable ASCII by byte, a few longer tokens, and the tiny models' end of sequence."""
    made = Tokenizer(BPE({piece: at for at, piece in enumerate([*SPECIALS, *PIECES])}, []))
    made.pre_tokenizer, made.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    made.add_special_tokens(SPECIALS)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def engine(llama: TinyModel, tokenizer: str) -> Engine:
    return engine_of(llama, tokenizer)


def engine_of(model: TinyModel, tokenizer: str | None, **others: Any) -> Engine:
    return Engine.from_folder(model.folder, EngineConfig(dtype="float32", tokenizer=tokenizer, **others))


def sampled(grammar: Grammar, seed: int = 1, **others: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 2.0, "seed": seed, "max_tokens": 90, "grammar": grammar, **others})


def text(tokens: list[int]) -> str:
    """What a finished output says."""
    assert tokens[-1] == EOS
    return "".join(TEXTS[token] for token in tokens[:-1])


def satisfies(kind: str, said: str) -> bool:
    match kind:
        case "json_schema":
            value = json.loads(said)
            tags = value["tags"]
            return (
                list(value) == ["ok", "size", "tags"]
                and isinstance(value["ok"], bool)
                and 10 <= value["size"] <= 40
                and 1 <= len(tags) <= 3
                and set(tags) <= {"a", "abc"}
            )
        case "regex":
            return re.fullmatch(str(GRAMMARS[kind].source), said) is not None
        case "lark":
            return re.fullmatch(r"\(*[xyz]\)*", said) is not None and said.count("(") == said.count(")")
        case _:
            return said in GRAMMARS["choice"].source


@pytest.mark.parametrize("kind", GRAMMARS)
def test_every_output_satisfies_its_grammar(engine: Engine, kind: str) -> None:
    """A random model at a high temperature, which says nothing of the kind by itself."""
    requests = [Request(str(seed), random_prompt(5, seed), sampled(GRAMMARS[kind], seed)) for seed in range(30)]
    run = run_all(engine, requests)
    ended = [name for name in run.deltas if run.finish_reason(name) == "stop"]
    said = {text(run.tokens(name)) for name in ended}
    assert all(satisfies(kind, each) for each in said)
    assert len(said) > 2
    assert len(ended) == 30 or kind == "lark"  # whose language has no longest word
    assert not run.failed


@settings(deadline=None, max_examples=25)
@given(
    strings=st.lists(st.text(string.printable[:95], min_size=1, max_size=6), min_size=1, max_size=5, unique=True),
    seed=st.integers(0, 100),
)
def test_any_strings_can_be_the_choice(engine: Engine, strings: list[str], seed: int) -> None:
    run = run_all(engine, [Request("x", [1, 2, 3], sampled(Grammar("choice", tuple(strings)), seed))])
    assert text(run.tokens("x")) in strings


def test_draws_follow_the_models_distribution_within_the_grammar(engine: Engine, llama: TinyModel) -> None:
    prompt, count = random_prompt(6, seed=2), 1500
    sampling = {"temperature": 3.0, "max_tokens": 1}
    grammar = Grammar("regex", "[a-h]")
    requests = [Request(str(seed), prompt, sampled(grammar, seed, **sampling)) for seed in range(count)]
    tokens = [deltas[0].token_id for deltas in run_all(engine, requests).deltas.values()]
    possible = [TEXTS.index(each) for each in "abcdefgh"]
    weights = (llama.logprobs(prompt)[-1][possible] / 3.0).double().softmax(-1).numpy()
    counts = np.array([tokens.count(token) for token in possible])
    assert counts.sum() == count
    assert chisquare(counts, weights * count).pvalue > 1e-3


@pytest.mark.parametrize(
    ("grammar", "overlap"),
    [
        (GRAMMARS["json_schema"], "off"),
        (Grammar("regex", "([a-d]x?){40}"), "off"),
        (Grammar("regex", "([a-d]x?){40}"), "on"),
    ],
)
def test_crowds_preemption_and_resume_change_nothing(
    llama: TinyModel, tokenizer: str, grammar: Grammar, overlap: Overlap
) -> None:
    """Neither of the constrained output, nor of its neighbours that have no grammar."""
    prompt = random_prompt(20, seed=3)
    request = Request("x", prompt, sampled(grammar, repetition_penalty=1.2))
    free = [Request(f"n{n}", random_prompt(15 + n, seed=n), greedy(30)) for n in range(6)]
    alone = run_all(engine_of(llama, tokenizer), [request]).tokens("x")
    undisturbed = run_all(engine_of(llama, tokenizer), free)
    crowded = engine_of(llama, tokenizer, max_running=5, kv_pages=7, token_budget=16, overlap=overlap)
    run = run_all(crowded, [*free[:3], request, *free[3:]])
    assert crowded.stats().preemptions > 0
    assert run.tokens("x") == alone
    assert all(run.tokens(each.id) == undisturbed.tokens(each.id) for each in free)
    for known in (1, len(alone) // 2, len(alone) - 1):
        resumed = Request("x", prompt, request.sampling, output_ids=[alone[:known]])
        assert run_all(engine_of(llama, tokenizer), [resumed]).tokens("x") == alone[known:]


def test_choices_of_one_request_go_their_own_ways(engine: Engine) -> None:
    engine.submit(Request("x", [1, 2, 3], sampled(GRAMMARS["regex"], n=5)))
    said: dict[int, list[int]] = {}
    while engine.has_work:
        for delta in engine.step().deltas:
            said.setdefault(delta.choice, []).append(delta.token_id)
    assert len({text(tokens) for tokens in said.values()}) > 2
    assert all(satisfies("regex", text(tokens)) for tokens in said.values())


def test_a_step_that_failed_is_repeated_from_the_same_state(engine: Engine) -> None:
    request = Request("x", [1, 2, 3], sampled(GRAMMARS["json_schema"]))
    expected = run_all(engine, [request]).tokens("x")
    forward = engine._runner._model

    def unlucky(_batch: Any) -> Any:
        raise RuntimeError("out of luck")

    engine.submit(request)
    run = Run()
    while engine.has_work:
        engine._runner._model = unlucky  # type: ignore[assignment]
        with pytest.raises(StepFailed):
            engine.step()
        engine._runner._model = forward
        step_once(engine, run)
    assert run.tokens("x") == expected


def test_a_grammar_that_breaks_fails_its_request_alone(engine: Engine) -> None:
    good = Request("good", [1, 2, 3], sampled(GRAMMARS["regex"]))
    expected = run_all(engine, [good]).tokens("good")
    engine.submit(Request("bad", [4, 5], sampled(GRAMMARS["regex"])))
    engine.submit(good)
    run = Run()
    step_once(engine, run)
    (bad,) = (each for each in engine._scheduler.running if each.request.id == "bad")
    assert bad.matcher is not None
    bad.matcher._state.consume_token(TEXTS.index("}"))  # which the regex never admits
    while engine.has_work:
        step_once(engine, run)
    assert [(failure.request_id, failure.code) for failure in run.failed] == [("bad", "grammar_failed")]
    assert len(run.tokens("bad")) == 1
    assert run.tokens("good") == expected


class TestRefusals:
    @pytest.mark.parametrize(
        ("kind", "source", "problem"),
        [
            ("json_schema", '{"type": "nonsense"}', "nonsense"),
            ("json_schema", '{"type": "string", "minLength": 5, "maxLength": 2}', "nsatisfiable"),
            ("json_schema", "{type: object}", "no JSON"),
            ("json_schema", '{"const": 1' + "0" * 400 + "}", "out of range"),
            ("regex", "a(b", "a(b"),
            ("lark", 'start: "a" | missing', "missing"),
            ("choice", (), "choice"),
            ("choice", ("a", ""), "choice"),
            ("choice", "ab", "choice"),
            ("prose", "a", "kind"),
        ],
    )
    def test_a_grammar_that_cannot_be(self, engine: Engine, kind: Any, source: Any, problem: str) -> None:
        before = engine.stats()
        with pytest.raises(InvalidGrammar, match=re.escape(problem)) as caught:
            engine.submit(Request("x", [1], sampled(Grammar(kind, source))))
        assert (caught.value.field, caught.value.kind, caught.value.code) == ("grammar", kind, "invalid_grammar")
        assert engine.stats() == before
        assert not engine.has_work

    @pytest.mark.parametrize(("field", "value"), [("ignore_eos", True), ("min_tokens", 1)])
    def test_what_contradicts_a_grammar(self, engine: Engine, field: str, value: Any) -> None:
        with pytest.raises(InvalidSampling) as caught:
            engine.submit(Request("x", [1], sampled(GRAMMARS["regex"], **{field: value})))
        assert caught.value.field == field

    def test_an_output_that_is_outside_already(self, engine: Engine) -> None:
        output = [TEXTS.index("ab"), TEXTS.index("-")]
        with pytest.raises(InvalidRequest, match="grammar") as caught:
            engine.submit(Request("x", [1], sampled(GRAMMARS["regex"]), output_ids=[output]))
        assert caught.value.field == "output_ids"
        assert not engine.has_work

    def test_an_engine_without_a_tokenizer(self, llama: TinyModel) -> None:
        with pytest.raises(InvalidSampling, match="without a tokenizer"):
            engine_of(llama, None).submit(Request("x", [1], sampled(GRAMMARS["regex"])))

    def test_a_tokenizer_that_is_not_there(self, llama: TinyModel, tmp_path: Path) -> None:
        with pytest.raises(InvalidConfig, match="'tokenizer'"):
            engine_of(llama, str(tmp_path / "tokenizer.json"))

    def test_a_tokenizer_that_cannot_be_read(self, llama: TinyModel, tmp_path: Path) -> None:
        path = tmp_path / "tokenizer.json"
        path.write_text("{}")
        engine = engine_of(llama, str(path))
        with pytest.raises(InvalidSampling, match="bytes of its tokens"):
            engine.submit(Request("x", [1], sampled(GRAMMARS["regex"])))

    def test_a_model_without_an_end(self, models: Any, tokenizer: str) -> None:
        with pytest.raises(InvalidSampling, match="end of sequence"):
            engine_of(models("llama", eos_token_id=None), tokenizer).submit(
                Request("x", [1], sampled(GRAMMARS["regex"]))
            )

    def test_where_the_package_is_not_installed(
        self, llama: TinyModel, tokenizer: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All else goes on without it."""
        monkeypatch.delitem(sys.modules, "penstock_engine.grammar", raising=False)
        monkeypatch.setitem(sys.modules, "llguidance", None)
        engine = engine_of(llama, tokenizer)
        with pytest.raises(InvalidSampling, match="llguidance"):
            engine.submit(Request("x", [1], sampled(GRAMMARS["regex"])))
        assert len(run_all(engine, [Request("x", [1], greedy(3))]).tokens("x")) == 3
