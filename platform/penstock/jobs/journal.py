"""The token journal: a fenced Redis stream per job, from which readers and the next holder go on at the exact token.

Position is an entry's place in its job's journal, from 0, counted over all choices; stream id `0-<position + 1>`.
An entry's `index` counts within its choice. A token's entry may carry no text (its bytes do not end a character yet, or
may begin a stop string); the text follows with a later entry. The last entry of each choice carries the finish reason
and no token. Where the prompt's log probabilities were asked for, the journal begins with an entry that holds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, cast

import msgspec
from redis import Redis
from redis.commands.core import Script
from redis.exceptions import NoScriptError

from penstock.broker import LIVE_CHANNEL_PREFIX
from penstock.errors import LeaseLost


class PromptToken(msgspec.Struct, frozen=True, array_like=True):
    """One token of the prompt, its log probability given those before it, and the likeliest in its place."""

    token_id: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class CallPiece(msgspec.Struct, frozen=True, array_like=True):
    """More of the choice's tool call of that index. Its first piece brings `id` and `name`."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


class JournalEntry(msgspec.Struct, frozen=True, array_like=True):
    """One token of one choice, or (with `finish_reason` and no token) the choice's end, or `prompt` with its tokens.

    `top_logprobs` are the likeliest tokens in this one's place; None where none were asked for. `calls` are what it
    adds to the choice's tool calls, beside the text that it adds to what is said.
    """

    choice: int
    index: int
    token_id: int | None
    text: str
    logprob: float | None
    fence: int
    finish_reason: str | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None
    prompt: tuple[PromptToken, ...] | None = None
    calls: tuple[CallPiece, ...] = ()


class LiveAppend(msgspec.Struct, frozen=True, array_like=True):
    """What is published when entries were journalled: `entries` begin at `first_position`."""

    job_id: str
    first_position: int
    entries: list[JournalEntry]


class LiveMessage(msgspec.Struct, frozen=True, array_like=True):
    """One publication on a live channel: appended entries, and jobs whose state events a reader should look up."""

    appends: list[LiveAppend] = msgspec.field(default_factory=list)
    events: list[str] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Append:
    """Entries that the holder with `fence` wants at `first_position` of the job's journal."""

    job_id: str
    fence: int
    first_position: int
    entries: Sequence[JournalEntry]


@dataclass(frozen=True, slots=True)
class Round:
    """What a process writes at one time: entries, finished jobs' journals that may go (each with its fence) after
    `linger_seconds`, and jobs whose state events readers should look up."""

    appends: Sequence[Append] = ()
    closing: Sequence[tuple[str, int]] = ()
    linger_seconds: int = 1
    events: Sequence[str] = ()


class AppendResult(IntEnum):
    """What became of an append. `EMPTIED`: Redis lost the journal, the holder rewrites it from memory."""

    DONE = 0
    FENCED = -1
    EMPTIED = -2


@dataclass(frozen=True, slots=True)
class OpenedJournal:
    """What a claim found: the entries, and whether Redis still knew the job at all."""

    entries: list[JournalEntry]
    known: bool


_encoder: Final = msgspec.msgpack.Encoder()
_entry_decoder: Final = msgspec.msgpack.Decoder(JournalEntry)
_entries_decoder: Final = msgspec.msgpack.Decoder(list[JournalEntry])
_live_decoder: Final = msgspec.msgpack.Decoder(LiveMessage)

# KEYS: stream, fence. A repeated append (its answer was lost) finds its entries there and is no error.
_APPEND: Final = """
local fence = redis.call('GET', KEYS[2])
if not fence then return -2 end
if fence ~= ARGV[1] then return -1 end
local length = redis.call('XLEN', KEYS[1])
local first = tonumber(ARGV[2])
if length == first + #ARGV - 2 then return 0 end
if length ~= first then return -2 end
for i = 3, #ARGV do redis.call('XADD', KEYS[1], '0-' .. (first + i - 2), 'e', ARGV[i]) end
return 0
"""

# KEYS: stream, fence. A fence only ever rises. Answers -1 when a later holder has been here.
_OPEN: Final = """
local fence = redis.call('GET', KEYS[2])
if fence and tonumber(fence) > tonumber(ARGV[1]) then return {-1} end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('PERSIST', KEYS[1])
return {fence and 1 or 0, redis.call('XRANGE', KEYS[1], '-', '+')}
"""

_REWRITE: Final = """
local fence = redis.call('GET', KEYS[2])
if fence and tonumber(fence) > tonumber(ARGV[1]) then return -1 end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[1])
for i = 2, #ARGV do redis.call('XADD', KEYS[1], '0-' .. (i - 1), 'e', ARGV[i]) end
return 0
"""

_CLOSE: Final = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return -1 end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 0
"""


def pack_entries(entries: Sequence[JournalEntry]) -> bytes:
    """A whole journal as PostgreSQL keeps it."""
    return _encoder.encode(entries)


def unpack_entries(data: bytes) -> list[JournalEntry]:
    """The inverse of `pack_entries`."""
    return _entries_decoder.decode(data)


def unpack_live(data: bytes) -> LiveMessage:
    """A publication of a live channel."""
    return _live_decoder.decode(data)


def _keys(job_id: str) -> tuple[str, str]:
    return f"penstock:journal:{{{job_id}}}", f"penstock:fence:{{{job_id}}}"


_Call = tuple[Script, str, Sequence[int | bytes]]
"""A script, the job whose keys it gets, and its arguments."""
_NOBODY: Final = 2**53
_NOBODY_SECONDS: Final = 60


class Journal:
    """The journals of all jobs, over one Redis client. `publisher` names the live channel of this process."""

    def __init__(self, redis: Redis, publisher: str) -> None:
        self._redis = redis
        self._channel = LIVE_CHANNEL_PREFIX + publisher
        self._append = redis.register_script(_APPEND)
        self._open = redis.register_script(_OPEN)
        self._rewrite = redis.register_script(_REWRITE)
        self._close = redis.register_script(_CLOSE)

    def open(self, job_id: str, fence: int) -> OpenedJournal:
        """Shut every earlier holder out, then read what they wrote. Raises `LeaseLost` when a later holder was here."""
        known, *rest = self._open(keys=_keys(job_id), args=[fence])
        if known == -1:
            raise LeaseLost(f"the journal of {job_id} has a later holder than fence {fence}")
        return OpenedJournal([_decode(fields) for _, fields in rest[0]], bool(known))

    def append(self, appends: Sequence[Append]) -> list[AppendResult]:
        """Journal one step of every job in one round trip, then publish what was accepted; one result an append."""
        return self.write(Round(appends))

    def write(self, work: Round) -> list[AppendResult]:
        """A whole round in two round trips: one for the journals, one to publish; one result an append."""
        calls: list[_Call] = [
            (self._append, append.job_id, [append.fence, append.first_position, *map(_encoder.encode, append.entries)])
            for append in work.appends
        ]
        calls += [(self._close, job_id, [fence, max(work.linger_seconds, 1)]) for job_id, fence in work.closing]
        codes = self._call_all(calls)
        results = [AppendResult(int(code)) for code in codes[: len(work.appends)]]
        accepted = [
            LiveAppend(append.job_id, append.first_position, list(append.entries))
            for append, result in zip(work.appends, results, strict=True)
            if result is AppendResult.DONE
        ]
        if accepted or work.events:
            self._publish(LiveMessage(accepted, list(work.events)))
        return results

    def _call_all(self, calls: Sequence[_Call]) -> list[int]:
        """Run scripts in one round trip; all of them again where Redis had forgotten one, which changes nothing."""
        if not calls:
            return []
        try:
            return self._pipelined(calls)
        except NoScriptError:
            for text in {script.script for script, _, _ in calls}:
                self._redis.script_load(text)
            return self._pipelined(calls)

    def _pipelined(self, calls: Sequence[_Call]) -> list[int]:
        with self._redis.pipeline(transaction=False) as pipe:
            for script, job_id, arguments in calls:
                keys = _keys(job_id)
                pipe.evalsha(script.sha, len(keys), *keys, *arguments)
            return pipe.execute()

    def rewrite(self, job_id: str, fence: int, entries: Sequence[JournalEntry]) -> None:
        """Put the holder's memory in place of a journal that Redis lost. Raises `LeaseLost` after a later holder."""
        if self._rewrite(keys=_keys(job_id), args=[fence, *map(_encoder.encode, entries)]) == -1:
            raise LeaseLost(f"the journal of {job_id} has a later holder than fence {fence}")
        self._publish(LiveMessage(appends=[LiveAppend(job_id, 0, list(entries))]))

    def read(self, job_id: str, first_position: int = 0) -> list[JournalEntry]:
        """The entries from `first_position` on; empty when there are none, or none any more."""
        rows = cast(
            list[tuple[bytes, dict[bytes, bytes]]],
            self._redis.xrange(_keys(job_id)[0], min=f"0-{first_position + 1}"),
        )
        return [_decode_map(fields) for _, fields in rows]

    def close(self, job_id: str, fence: int, linger_seconds: int) -> None:
        """Let a finished job's journal go after `linger_seconds`; PostgreSQL has it by now."""
        self.close_all([(job_id, fence)], linger_seconds)

    def close_all(self, held: Sequence[tuple[str, int]], linger_seconds: int) -> None:
        """The same for many jobs, each with its fence, in one round trip."""
        self.write(Round(closing=held, linger_seconds=linger_seconds))

    def forget(self, job_ids: Sequence[str]) -> None:
        """Delete what Redis has of these jobs. Where a holder was lately, a fence keeps it from writing for a while."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                stream, fence = _keys(job_id)
                pipe.delete(stream)
                pipe.set(fence, _NOBODY, ex=_NOBODY_SECONDS, xx=True)
            pipe.execute()

    def announce(self, job_ids: Sequence[str]) -> None:
        """Tell live readers that these jobs have new state events in PostgreSQL."""
        self._publish(LiveMessage(events=list(job_ids)))

    def _publish(self, message: LiveMessage) -> None:
        self._redis.publish(self._channel, _encoder.encode(message))


def _decode(fields: list[bytes]) -> JournalEntry:
    return _entry_decoder.decode(fields[1])


def _decode_map(fields: dict[bytes, bytes]) -> JournalEntry:
    return _entry_decoder.decode(fields[b"e"])
