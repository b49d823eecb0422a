"""Submitting once, however often it is asked for with one key (draft-ietf-httpapi-idempotency-key-header-07).

The key's row and the job's are written in one transaction, so there is never one without the other. While it lasts
an advisory lock on the key turns duplicates away at once; a request that was refused leaves nothing behind, and its
key can be used again. Takes a session, never commits.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, func, select, text, tuple_
from sqlalchemy.orm import Session

from penstock.errors import IdempotencyKeyInUse, IdempotencyKeyReused, ValidationFailed
from penstock.idempotency.models import IdempotencyKey
from penstock.jobs.models import Job
from penstock.jobs.presentation import job_document

HEADER: Final = "Idempotency-Key"
_LONGEST: Final = 255
_BARE: Final = re.compile(r"[\x21\x23-\x7e][\x20-\x7e]*")
_QUOTED: Final = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])+)"')
_SWEPT_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A tenant's request that must act once. `fingerprint` is the digest of what it asks for."""

    tenant_id: str
    key: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job as it was accepted. `replayed` when an earlier request with the same key has made it; else with `job`."""

    document: dict[str, Any]
    replayed: bool
    job: Job | None = None

    @property
    def job_id(self) -> str:
        job_id: str = self.document["id"]
        return job_id


def keyed_request(tenant_id: str, header: str | None, asked: Callable[[], Any]) -> KeyedRequest | None:
    """The request under the key that the header gives, or None without one. `asked` tells what it asks for, as JSON,
    its members in an order that means something: that of a schema's properties decides the order of the output.

    Raises `ValidationFailed` when the header holds no key: a string in quotes, as the draft has it, or the bare text.
    """
    if header is None:
        return None
    canonical = json.dumps(asked(), ensure_ascii=False, separators=(",", ":"))
    return KeyedRequest(tenant_id, _key_in(header), hashlib.sha256(canonical.encode()).digest())


def accept_once(
    session: Session, request: KeyedRequest | None, make: Callable[[], Job], *, keep_seconds: int
) -> Accepted:
    """Make the job, unless a request with the same key made it in the last `keep_seconds`; then answer with that.

    Raises `IdempotencyKeyReused` when that request asked for something else and `IdempotencyKeyInUse` while it is not
    through yet.
    """
    if request is None:
        job = make()
        return Accepted(job_document(job), replayed=False, job=job)
    _lock(session, request)
    kept = _recall(session, request, keep_seconds)
    if kept is not None:
        return Accepted(kept, replayed=True)
    job = make()
    document = job_document(job)
    session.add(
        IdempotencyKey(
            tenant_id=request.tenant_id,
            key=request.key,
            fingerprint=request.fingerprint,
            job_id=document["id"],
            answer=document | {"input": None},
        )
    )
    session.flush()
    return Accepted(document, replayed=False, job=job)


def forget_expired(session: Session, keep_seconds: int) -> int:
    """Delete up to 500 keys that are older than `keep_seconds`, leaving those that others hold; how many it were."""
    expired = (
        select(IdempotencyKey.tenant_id, IdempotencyKey.key)
        .where(IdempotencyKey.created_at < _oldest(keep_seconds))
        .limit(_SWEPT_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    gone = session.scalars(
        delete(IdempotencyKey)
        .where(tuple_(IdempotencyKey.tenant_id, IdempotencyKey.key).in_(expired))
        .returning(IdempotencyKey.key)
        .execution_options(synchronize_session=False)
    )
    return len(gone.all())


def _key_in(header: str) -> str:
    text_ = header.strip()
    quoted = _QUOTED.fullmatch(text_)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text_
    if not (quoted or _BARE.fullmatch(text_)) or len(key) > _LONGEST:
        raise ValidationFailed(
            f"the header {HEADER} must hold 1 to {_LONGEST} printable ASCII characters, such as a UUID", field=HEADER
        )
    return key


def _lock(session: Session, request: KeyedRequest) -> None:
    """Hold the key until the transaction ends, so that duplicates are told apart from requests that came later."""
    name = hashlib.sha256(f"{HEADER}\0{request.tenant_id}\0{request.key}".encode()).digest()
    number = int.from_bytes(name[:8], signed=True)
    if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:number)"), {"number": number}):
        raise IdempotencyKeyInUse(
            f"a request with this {HEADER} is being handled now; send it again in a second for its answer",
            field=HEADER,
            retry_after=1,
        )


def _recall(session: Session, request: KeyedRequest, keep_seconds: int) -> dict[str, Any] | None:
    row = session.execute(
        select(IdempotencyKey, Job.input, IdempotencyKey.created_at < _oldest(keep_seconds))
        .join(Job, Job.id == IdempotencyKey.job_id)
        .where(IdempotencyKey.tenant_id == request.tenant_id, IdempotencyKey.key == request.key)
    ).one_or_none()
    if row is None:
        return None
    kept, job_input, expired = row
    if expired:
        session.delete(kept)
        session.flush()
        return None
    if kept.fingerprint != request.fingerprint:
        raise IdempotencyKeyReused(
            f"this {HEADER} came with another request before, which made {kept.job_id}; a new request needs a new key",
            field=HEADER,
        )
    return {**kept.answer, "input": job_input}


def _oldest(keep_seconds: int) -> Any:
    return func.now() - func.make_interval(0, 0, 0, 0, 0, 0, keep_seconds)
