"""Prompts are counted by the model's own tokenizer and chat template, here those of the shipped demo model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from penstock.app import create_app
from penstock.clock import utc_now
from penstock.db import Database
from penstock.ids import new_id
from penstock.registry.folder import describe
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.settings import Settings
from redis import Redis
from tokenizers import Tokenizer

from tests.platform.api.conftest import Caller

MODEL = Path(__file__).parents[3] / "examples" / "invoices" / "model"
INVOICE = "Invoice 2041 from Alder & Sons"


@pytest.fixture
def app(settings: Settings, database: Database, redis: Redis) -> Iterator[Flask]:
    """The application as it is served, with nothing in place of the tokenizer."""
    app = create_app(settings, database=database, redis=redis)
    yield app
    app.extensions["penstock"].stop_streams()


@pytest.fixture(autouse=True)
def invoices(database: Database) -> Deployment:
    folder = describe(MODEL)
    with database.transaction() as session:
        deployment = Deployment(
            id=new_id("dep"),
            model_name="invoices",
            model_version="1",
            source=str(folder.path),
            manifest=folder.manifest,
            digest=folder.digest,
            recipe=folder.recipe,
            context_length=folder.context_length,
        )
        session.add(deployment)
        session.flush()
        session.add(
            RoutingPolicy(
                model_name="invoices",
                champion_id=deployment.id,
                champion_since=utc_now(),
                reason="made by a test",
            )
        )
    return deployment


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def test_a_prompt_is_counted_in_the_models_tokens(caller: Caller, tokenizer: Tokenizer) -> None:
    answer = caller.post("/v1/jobs", {"model": "invoices", "input": {"prompt": INVOICE}})

    assert answer.json["usage"]["prompt_tokens"] == len(tokenizer.encode(INVOICE).ids)


def test_a_chat_is_counted_with_what_its_template_adds(caller: Caller, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": INVOICE}]
    answer = caller.post("/v1/jobs", {"model": "invoices", "input": {"messages": messages}})

    assert answer.status_code == 202, answer.text
    assert answer.json["usage"]["prompt_tokens"] > len(tokenizer.encode(INVOICE, add_special_tokens=False).ids)


def test_a_prompt_over_the_models_context_is_refused_with_both_numbers(
    caller: Caller, tokenizer: Tokenizer, invoices: Deployment
) -> None:
    prompt = INVOICE * 200
    answer = caller.post("/v1/jobs", {"model": "invoices", "input": {"prompt": prompt}})

    assert (answer.status_code, answer.json["code"]) == (400, "context_length_exceeded")
    assert answer.json["prompt_tokens"] == len(tokenizer.encode(prompt).ids)
    assert answer.json["context_length"] == invoices.context_length


def test_a_model_whose_folder_is_gone_is_unavailable_not_a_crash(
    caller: Caller, database: Database, invoices: Deployment
) -> None:
    with database.transaction() as session:
        session.get_one(Deployment, invoices.id).source = "/nowhere"
    answer = caller.post("/v1/jobs", {"model": "invoices", "input": {"prompt": INVOICE}})

    assert (answer.status_code, answer.json["code"]) == (503, "service_unavailable")
    assert "/nowhere" in answer.json["detail"]
