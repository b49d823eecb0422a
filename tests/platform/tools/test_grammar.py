"""The grammar of an answer with tools, with real tokenizers: what may be written, token by token, and what may not."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from penstock.registry.tokenizer import ModelTokenizer
from penstock.tools.forms import FORMS, LLAMA, CallForm
from tokenizers import AddedToken, Tokenizer

from tests.platform.registry import tool_templates
from tests.platform.registry.model_folders import byte_fallback, byte_level, make_folder
from tests.platform.tools.test_parser import Calls, read, written

TEMPLATES = {
    "hermes": tool_templates.HERMES,
    "mistral": tool_templates.MISTRAL,
    "mistral-spaced": tool_templates.MISTRAL_SPACED,
    "llama": tool_templates.LLAMA,
}
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "now"}}
PARIS, NOW = ("weather", '{"city": "Paris"}'), ("now", "{}")


class Model:
    """A tokenizer with a template of the form, and what it may write."""

    def __init__(self, folder: Path, form: CallForm) -> None:
        self.form = form
        self.tokenizer = ModelTokenizer.from_folder(folder)
        self.raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.bytes = LLTokenizer(str(folder / "tokenizer.json"), n_vocab=self.raw.get_vocab_size(), eos_token=[1])

    def grammar(self, choice: Any, *, parallel: bool = True) -> str:
        return self.tokenizer.call_grammar({"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": parallel})

    def ids(self, text: str) -> list[int]:
        return list(self.raw.encode(text, add_special_tokens=False).ids)

    def spelled(self, text: str) -> list[int]:
        """With no token for a marker."""
        for marker in self.form.markers:
            text = text.replace(marker, "\0".join(marker))
        return [token for piece in text.split("\0") for token in self.ids(piece)]

    def matcher(self, choice: Any, *, parallel: bool = True) -> LLMatcher:
        matcher = LLMatcher(self.bytes, self.grammar(choice, parallel=parallel), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def admits(self, choice: Any, ids: Sequence[int], *, parallel: bool = True) -> bool:
        """Whether that may be a whole answer."""
        matcher = self.matcher(choice, parallel=parallel)
        return matcher.try_consume_tokens(list(ids)) == len(ids) and matcher.is_accepting()


@pytest.fixture(scope="module", params=[(form, special) for form in FORMS for special in (True, False)],
                ids=lambda param: f"{param[0].name}-{'special' if param[1] else 'plain'}")  # fmt: skip
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    form, special = request.param
    tokenizer = byte_level()
    added = [AddedToken(marker, special=special, normalized=False) for marker in form.markers]
    tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)
    folder = tmp_path_factory.mktemp(form.name) / "model"
    return Model(make_folder(folder, tokenizer=tokenizer, chat_template=TEMPLATES[form.name]), form)


def answers(form: CallForm) -> dict[str, tuple[str, Calls]]:
    several = {"two": ("", [PARIS, NOW])} if form.between else {}
    return {"said": ("Hello. ", []), "one": ("", [PARIS]), "other": ("", [NOW]), "both": ("Hm.\n", [NOW])} | several


@pytest.mark.parametrize(
    ("choice", "parallel", "admitted"),
    [
        ("none", True, {"said"}),
        ("auto", True, {"said", "one", "other", "both", "two"}),
        ("auto", False, {"said", "one", "other", "both"}),
        ("required", True, {"one", "other", "two"}),
        ("required", False, {"one", "other"}),
        (NAMED, True, {"other"}),
    ],
    ids=["none", "auto", "auto-single", "required", "required-single", "named"],
)
def test_a_choice_admits_what_it_says(model: Model, choice: Any, parallel: bool, admitted: set[str]) -> None:
    for name, (said, calls) in answers(model.form).items():
        text = written(model.form, said, calls)
        for ids in (model.ids(text), model.spelled(text)):
            assert model.admits(choice, ids, parallel=parallel) is (name in admitted), (name, text)


@pytest.mark.parametrize(
    "wrong", [("weather", '{"city": "Rome"}'), ("weather", "{}"), ("nothing", "{}"), ("now", '{"a": 1}')]
)
def test_no_call_leaves_the_schemas(model: Model, wrong: tuple[str, str]) -> None:
    for choice in ("auto", "required"):
        assert not model.admits(choice, model.ids(written(model.form, "", [wrong])))
        assert not model.admits(choice, model.spelled(written(model.form, "", [wrong])))


def test_what_is_said_holds_no_opening(model: Model) -> None:
    openings = [model.form.opening, "Hm. " + model.form.opening]
    openings += [model.form.before_name, LLAMA.before_name + "x"] if model.form is LLAMA else []
    for text in openings:
        for ids in (model.ids(text), model.spelled(text)):
            assert not model.admits("none", ids), text
            assert not model.admits("auto", ids), text
    assert model.admits("none", model.ids("Hm. " + model.form.before_name))


def test_nothing_is_said_after_a_call(model: Model) -> None:
    assert not model.admits("auto", model.ids(written(model.form, "", [NOW]) + "x"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(seed=st.randoms(use_true_random=False), choice=st.sampled_from(["auto", "required"]))
def test_whatever_a_random_model_writes_is_read_as_valid_calls(model: Model, seed: Any, choice: str) -> None:
    """Among the tokens that the grammar lets come next, any is drawn; they are read as they come."""
    matcher, ids = model.matcher(choice), []
    for _ in range(400):
        if (token := seed.choice(allowed(matcher))) == 1:
            break
        matcher.consume_token(token)
        ids.append(token)
    detokenizer = model.tokenizer.detokenizer(shown=model.form.markers)
    said, calls = read(model.form, [*(detokenizer.push(token) for token in ids), detokenizer.flush()])

    assert calls or choice == "auto"
    for name, arguments in calls if token == 1 else calls[:-1]:
        told = json.loads(arguments)
        assert (name, told) == ("now", {}) or (name == "weather" and told["city"] in ("Paris", "Oslo")), (said, calls)


def allowed(matcher: LLMatcher) -> list[int]:
    bias = matcher.compute_logit_bias()
    assert not matcher.get_error()
    return [token for token, value in enumerate(bias) if value]


def test_a_tokenizer_of_another_kind_tells_its_markers_too(tmp_path: Path) -> None:
    tokenizer = byte_fallback()
    tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True, normalized=False)])
    folder = make_folder(tmp_path / "model", tokenizer=tokenizer, chat_template=tool_templates.MISTRAL_SPACED)
    model = Model(folder, ModelTokenizer.from_folder(folder).call_form)
    ids = [model.tokenizer.token_id("[TOOL_CALLS]") or 0, *model.ids('[{"name": "now", "arguments": {}}]')]

    assert model.admits("required", ids)
    detokenizer = model.tokenizer.detokenizer([5], shown=model.form.markers)
    pieces = [*(detokenizer.push(token) for token in ids), detokenizer.flush()]
    assert read(model.form, pieces) == ("", [("now", "{}")])
