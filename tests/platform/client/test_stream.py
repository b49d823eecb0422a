"""Streams that break: every event once, in order, whatever happens to the connection."""

import pytest
from penstock import Client
from penstock.client import ConnectionFailed, Event, PenstockError, StateEvent, TokenEvent, UnexpectedAnswer
from penstock.errors import NotFound, ValidationFailed

from tests.platform.client.server import (
    WHOLE_STREAM,
    Misbehaving,
    Reply,
    problem,
    state_event,
    stream,
    token_event,
)

IDS = ["1.0", "2.0", "2.1", "2.2", "2.3", "2.4", "3.4"]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenEvent))


def test_an_undisturbed_stream(server: Misbehaving, client: Client) -> None:
    server.replies.append(stream("retry: 1000\n\n" + ": hello\n\n".join(WHOLE_STREAM)))
    events = list(client.jobs.stream("job_01"))
    assert [event.id for event in events] == IDS
    assert text_of(events) == "Hé\u2028llo"
    last = events[-1]
    assert isinstance(last, StateEvent)
    assert last.final
    assert last.job is not None
    assert last.job.text == "Hé\u2028llo"
    assert "last-event-id" not in server.asked[0].headers
    assert server.asked[0].path == "/v1/jobs/job_01/events"
    assert len(server.asked) == 1


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("after", range(len(WHOLE_STREAM)))
def test_a_connection_that_breaks_anywhere_loses_and_repeats_nothing(
    server: Misbehaving, client: Client, after: int, reset: bool
) -> None:
    half = WHOLE_STREAM[after][: len(WHOLE_STREAM[after]) // 2]
    server.replies.append(stream("".join(WHOLE_STREAM[:after]) + half, cut=reset))
    server.replies.append(stream("".join(WHOLE_STREAM[after:])))
    assert [event.id for event in client.jobs.stream("job_01")] == IDS
    assert server.asked[1].headers.get("last-event-id") == (IDS[after - 1] if after else None)


def test_what_a_server_repeats_is_given_once(server: Misbehaving, client: Client) -> None:
    server.replies.append(stream("".join(WHOLE_STREAM[:4]), cut=True))
    server.replies.append(stream("".join(WHOLE_STREAM)))
    assert [event.id for event in client.jobs.stream("job_01")] == IDS


def test_what_a_server_leaves_out_is_an_error(server: Misbehaving, client: Client) -> None:
    server.replies.append(stream("".join(WHOLE_STREAM[:3] + WHOLE_STREAM[4:])))
    with pytest.raises(UnexpectedAnswer, match=r"from 2\.1 to 2\.3"):
        list(client.jobs.stream("job_01"))


def test_a_state_event_that_is_left_out_is_an_error(server: Misbehaving, client: Client) -> None:
    server.replies.append(stream(WHOLE_STREAM[0] + state_event(3, "requeued")))
    with pytest.raises(UnexpectedAnswer, match=r"from 1\.0 to 3\.0"):
        list(client.jobs.stream("job_01"))


def test_a_rewind_is_told_and_its_tokens_come_anew(server: Misbehaving, client: Client) -> None:
    rewound = [
        *WHOLE_STREAM[:4],
        state_event(3, "output.rewound", 1, position=1),
        token_event(3, 1, "new"),
        state_event(4, "succeeded", 2),
    ]
    server.replies.append(stream("".join(rewound[:5]), cut=True))
    server.replies.append(stream("".join(rewound[5:])))
    events = list(client.jobs.stream("job_01"))
    assert [event.id for event in events] == ["1.0", "2.0", "2.1", "2.2", "3.1", "3.2", "4.2"]
    assert server.asked[1].headers["last-event-id"] == "3.1"


def test_a_later_reader_goes_on_where_an_earlier_one_stopped(server: Misbehaving, client: Client) -> None:
    server.replies.append(stream("".join(WHOLE_STREAM[4:])))
    assert [event.id for event in client.jobs.stream("job_01", "2.2")] == IDS[4:]
    assert server.asked[0].headers["last-event-id"] == "2.2"


def test_nothing_follows_the_last_event(server: Misbehaving, client: Client) -> None:
    server.replies.append(Reply(204, body=b""))
    assert list(client.jobs.stream("job_01", "3.4")) == []


@pytest.mark.parametrize(
    "failure",
    [
        Reply(hang_up=True),
        Reply(504, body=b"<html>"),
        problem("service_unavailable", 503),
        problem("quota_exceeded", 429),
    ],
)
def test_a_server_that_is_away_for_a_while_is_waited_for(server: Misbehaving, client: Client, failure: Reply) -> None:
    lost: list[PenstockError] = []
    server.replies.append(stream("".join(WHOLE_STREAM[:3]), cut=True))
    server.replies.extend([failure] * 5)
    server.replies.append(stream("".join(WHOLE_STREAM[3:])))
    assert [event.id for event in client.jobs.stream("job_01", on_lost=lost.append)] == IDS
    assert len(lost) == 6


def test_a_server_that_stays_away_is_given_up(server: Misbehaving) -> None:
    server.replies.append(stream("".join(WHOLE_STREAM[:3]), cut=True))
    server.always = Reply(hang_up=True)
    with Client(server.url, "psk_x", patience=0.5) as client:
        events = client.jobs.stream("job_01")
        assert [next(events).id for _ in range(3)] == IDS[:3]
        with pytest.raises(ConnectionFailed):
            next(events)


@pytest.mark.timeout(30)
def test_connections_that_never_bring_anything_new_are_given_up(server: Misbehaving) -> None:
    server.always = stream("retry: 1000\n\n" + WHOLE_STREAM[0][:20], cut=True)
    with Client(server.url, "psk_x", patience=0.8) as client, pytest.raises((ConnectionFailed, UnexpectedAnswer)):
        list(client.jobs.stream("job_01"))


def test_a_refusal_is_raised_at_once(server: Misbehaving, client: Client) -> None:
    server.replies.append(problem("not_found", 404))
    with pytest.raises(NotFound):
        list(client.jobs.stream("job_01"))
    assert len(server.asked) == 1


def test_an_event_that_is_not_understood_is_an_error(server: Misbehaving, client: Client) -> None:
    server.replies.append(stream('id: 1.0\nevent: job.queued\ndata: {"number": 1}\n\n'))
    with pytest.raises(UnexpectedAnswer, match=r"job\.queued"):
        list(client.jobs.stream("job_01"))


def test_what_is_no_stream_is_told_so(server: Misbehaving, client: Client) -> None:
    server.replies.append(Reply(200, {"Content-Type": "text/html"}, b"<html>log in first"))
    with pytest.raises(UnexpectedAnswer, match="text/html"):
        list(client.jobs.stream("job_01"))


@pytest.mark.parametrize("event_id", ["", "3", "3.x", "-1.0", "1.2.3"])
def test_an_id_that_is_none_is_refused(client: Client, event_id: str) -> None:
    with pytest.raises(ValidationFailed, match=r"3\.57"):
        client.jobs.stream("job_01", event_id)


def test_a_reader_may_stop_early(server: Misbehaving, client: Client) -> None:
    server.replies.append(stream("".join(WHOLE_STREAM)))
    events = client.jobs.stream("job_01")
    next(events)
    events.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(server.asked) == 1
