"""`openai.files` against the running house."""

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

TEXT = b'{"custom_id": "1"}\n' * 5000


def test_a_file_is_uploaded_listed_read_and_deleted(client: OpenAI) -> None:
    made = client.files.create(file=("lines.jsonl", TEXT), purpose="batch")

    assert (made.object, made.bytes, made.purpose, made.filename) == ("file", len(TEXT), "batch", "lines.jsonl")
    assert made.id in [file.id for file in client.files.list(purpose="batch", limit=1)]
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == TEXT
    assert client.files.delete(made.id).deleted
    with pytest.raises(NotFoundError) as gone:
        client.files.retrieve(made.id)
    assert (gone.value.param, gone.value.code) == ("id", "not_found")


def test_a_file_may_expire(client: OpenAI) -> None:
    made = client.files.create(
        file=("a.jsonl", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert made.expires_at == made.created_at + 7200


def test_other_purposes_are_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")
    assert refused.value.param == "purpose"
