"""Our signatures are those of the public library, in both directions."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.webhooks.signing import SecretInvalid, is_signed, new_secret, sign
from standardwebhooks import Webhook

SECRET = new_secret()


@given(body=st.text(), webhook_id=st.from_regex(r"msg_[a-z0-9]{1,30}", fullmatch=True))
def test_signature_equals_the_librarys(body: str, webhook_id: str) -> None:
    timestamp = int(time.time())
    theirs = Webhook(SECRET).sign(webhook_id, datetime.fromtimestamp(timestamp, UTC), body)
    assert sign(SECRET, webhook_id, timestamp, body.encode()) == theirs


def test_a_signature_among_several_counts() -> None:
    mine = sign(SECRET, "msg_1", 5, b"{}")
    assert is_signed(f"v1,AAAA {mine} v2,x", SECRET, "msg_1", 5, b"{}")


@pytest.mark.parametrize(
    ("webhook_id", "timestamp", "body"), [("msg_2", 5, b"{}"), ("msg_1", 6, b"{}"), ("msg_1", 5, b"{ }")]
)
def test_nothing_that_is_signed_may_change(webhook_id: str, timestamp: int, body: bytes) -> None:
    assert not is_signed(sign(SECRET, "msg_1", 5, b"{}"), SECRET, webhook_id, timestamp, body)


def test_another_secret_does_not_verify() -> None:
    assert not is_signed(sign(new_secret(), "msg_1", 5, b"{}"), SECRET, "msg_1", 5, b"{}")


@pytest.mark.parametrize("header", ["", "v1", "v1,", "é", "v1,é"])
def test_a_broken_header_is_no_signature(header: str) -> None:
    assert not is_signed(header, SECRET, "msg_1", 5, b"{}")


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!", "whsec_é"])
def test_a_secret_that_is_none_says_so(secret: str) -> None:
    with pytest.raises(SecretInvalid, match="whsec_"):
        sign(secret, "msg_1", 5, b"{}")


def test_secrets_hold_256_bits_and_differ() -> None:
    assert len({new_secret() for _ in range(50)}) == 50
    assert len(SECRET) == len("whsec_") + 44
