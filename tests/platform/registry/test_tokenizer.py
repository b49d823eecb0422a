"""Prompts become the tokens that transformers makes of them; the cache serves registered files alone."""

import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from penstock.errors import ModelFolderInvalid, ServiceUnavailable, ValidationFailed
from penstock.registry.folder import describe
from penstock.registry.models import Deployment
from penstock.registry.tokenizer import ModelTokenizer
from penstock.registry.tokenizer_cache import TokenizerCache
from tokenizers import Tokenizer

from tests.platform.registry import model_folders, templates
from tests.platform.registry.model_folders import make_folder, write_json

CHATS = [
    [{"role": "user", "content": " What is the total?\n"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe <b>'&\" 🦊"}],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "</s> three <|user|>"},
    ],
]
TEXTS = ["Invoice No. 42", "  two spaces", "naïve 🦊 请", "</s><s> written out", "a\n\nb\t"]
KINDS: dict[str, Tokenizer] = {
    "byte-level": model_folders.byte_level(),
    "without a post-processor": model_folders.byte_level(adds_bos=False),
    "byte fallback": model_folders.byte_fallback(),
    "metaspace": model_folders.metaspace(),
}


def both(folder: Path) -> tuple[ModelTokenizer, Any]:
    """Ours, and the tokenizer of transformers."""
    from transformers import AutoTokenizer

    return ModelTokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_prompts_are_encoded_as_transformers_does(tmp_path: Path, kind: str) -> None:
    ours, theirs = both(make_folder(tmp_path / "model", tokenizer=KINDS[kind]))
    for text in TEXTS:
        ids = ours.encode_input({"prompt": text})
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("style", templates.ALL)
def test_chats_are_rendered_and_encoded_as_transformers_does(tmp_path: Path, style: str) -> None:
    ours, theirs = both(make_folder(tmp_path / "model", chat_template=templates.ALL[style]))
    for chat in CHATS:
        if style == "instructions" and chat[0]["role"] == "assistant":
            continue
        assert ours.render_chat(chat) == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert ours.encode_input({"messages": chat}) == expected


def test_a_template_may_name_the_date(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", chat_template=templates.HEADERS_WITH_DATE)
    before = datetime.now().astimezone()
    rendered = ModelTokenizer.from_folder(folder).render_chat(CHATS[0])
    days = (before, datetime.now().astimezone())
    assert any(day.strftime("Today is %d %b %Y\n") in rendered for day in days)


def test_tokens_named_in_the_configuration_alone_are_special(tmp_path: Path) -> None:
    end = {"__type": "AddedToken", "content": "<end>", "normalized": False, "special": True}
    named = {"pad_token": "<pad>", "sep_token": end, "additional_special_tokens": ["<tool>"]}
    ours, theirs = both(make_folder(tmp_path / "model", tokenizer_config=named))
    text = "a <tool> b<end><pad>"
    ids = ours.encode_input({"prompt": text})
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == "a  b"


def test_an_older_file_of_special_tokens_counts(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", chat_template="{{ bos_token }}{{ messages[0].content }}")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(folder / "special_tokens_map.json", {"bos_token": {"content": "<s>", "lstrip": False}})
    ours, theirs = both(folder)
    assert ours.render_chat(CHATS[0]) == theirs.apply_chat_template(CHATS[0], tokenize=False)
    assert ours.render_chat(CHATS[0]).startswith("<s> What")


def test_truncation_that_a_tokenizer_was_saved_with_is_off(tmp_path: Path) -> None:
    tokenizer = model_folders.byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    ours = ModelTokenizer.from_folder(make_folder(tmp_path / "model", tokenizer=tokenizer))
    text = "a long prompt that must stay whole"
    assert ours.decode(ours.encode_input({"prompt": text})) == text


def test_messages_without_a_template_are_refused_by_field(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(make_folder(tmp_path / "model", chat_template=None))
    with pytest.raises(ValidationFailed, match=r"give input\.prompt instead") as caught:
        tokenizer.encode_input({"messages": CHATS[0]})
    assert caught.value.field == "input.messages"


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"')
    with pytest.raises(ModelFolderInvalid, match=r"tokenizer\.json is not a tokenizer"):
        ModelTokenizer.from_folder(folder)


def test_the_answer_goes_on_from_the_prompt(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(make_folder(tmp_path / "model", tokenizer=KINDS["byte fallback"]))
    prompt = tokenizer.encode_input({"prompt": "The quick"})
    answer = tokenizer.encode_input({"prompt": "fox"})
    stream = tokenizer.detokenizer(prompt)
    text = "".join(stream.push(number) for number in answer) + stream.flush()
    assert tokenizer.decode(prompt) + text == tokenizer.decode([*prompt, *answer])


def deployment_of(folder: Path, identity: str = "dep_1") -> Deployment:
    described = describe(folder)
    return Deployment(
        id=identity,
        model_name="tiny",
        model_version="1",
        source=str(described.path),
        manifest=described.manifest,
        recipe=described.recipe,
        context_length=described.context_length,
        digest=described.digest,
    )


def test_the_cache_counts_a_prompts_tokens(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    cache, deployment = TokenizerCache(), deployment_of(folder)
    tokenizer = ModelTokenizer.from_folder(folder)
    for job_input in ({"prompt": "some words"}, {"messages": CHATS[0]}):
        assert cache.count(deployment, job_input) == len(tokenizer.encode_input(job_input))


def test_the_cache_keeps_the_most_recently_used(tmp_path: Path) -> None:
    first, second, third = (deployment_of(make_folder(tmp_path / name), name) for name in ("a", "b", "c"))
    cache = TokenizerCache(max_models=2)
    kept, dropped = cache.get(first), cache.get(second)
    assert cache.get(first) is kept
    cache.get(third)
    assert cache.get(first) is kept
    assert cache.get(second) is not dropped


def test_an_unreachable_folder_is_named(tmp_path: Path) -> None:
    deployment = deployment_of(make_folder(tmp_path / "model"))
    (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(ServiceUnavailable, match=f"tiny version 1, {tmp_path}/model, cannot be reached"):
        TokenizerCache().count(deployment, {"prompt": "x"})


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"])
def test_files_that_were_not_registered_are_never_used(tmp_path: Path, name: str) -> None:
    deployment = deployment_of(make_folder(tmp_path / "model"))
    with (tmp_path / "model" / name).open("a") as file:
        file.write(" ")
    with pytest.raises(ModelFolderInvalid, match=f"{name} is not the file that was registered"):
        TokenizerCache().count(deployment, {"prompt": "x"})


def test_a_template_that_appears_later_is_never_used(tmp_path: Path) -> None:
    deployment = deployment_of(make_folder(tmp_path / "model", chat_template=None))
    (tmp_path / "model" / "chat_template.jinja").write_text("injected")
    with pytest.raises(ModelFolderInvalid, match=r"chat_template\.jinja is not the file that was registered"):
        TokenizerCache().count(deployment, {"prompt": "x"})


def test_the_cache_loads_once_for_threads_that_come_at_once(tmp_path: Path) -> None:
    deployments = [deployment_of(make_folder(tmp_path / name), name) for name in ("a", "b")]
    cache, gate, got = TokenizerCache(), threading.Barrier(6), list[ModelTokenizer]()

    def work() -> None:
        gate.wait()
        got.extend(cache.get(deployment) for deployment in deployments)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 12
    assert len(set(map(id, got))) == 2


def test_the_cache_serves_threads_at_once(tmp_path: Path) -> None:
    deployments = [deployment_of(make_folder(tmp_path / name), name) for name in ("a", "b", "c")]
    cache = TokenizerCache(max_models=2)
    expected = cache.count(deployments[0], {"messages": CHATS[1]})
    counts: list[int] = []

    def work() -> None:
        counts.extend(cache.count(deployment, {"messages": CHATS[1]}) for deployment in deployments * 5)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [expected] * 90
