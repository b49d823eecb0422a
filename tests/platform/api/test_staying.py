"""When a thread of the web process stays with its connection for the next request, and when it goes."""

import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from gunicorn.workers.gthread import TConn
from penstock.web import StreamingWorker

HEAD = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"


@dataclass(frozen=True)
class Answered:
    """A connection whose request has just been answered, and its other end."""

    worker: StreamingWorker
    connection: TConn
    client: socket.socket

    def stays(self) -> bool:
        return self.worker._comes_soon(self.connection)


@pytest.fixture
def answered() -> Iterator[Answered]:
    worker = StreamingWorker.__new__(StreamingWorker)
    worker._unserved = deque()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Answered(worker, TConn(None, ours, None, None), theirs)


def test_a_thread_stays_for_a_request_that_is_there(answered: Answered) -> None:
    answered.client.sendall(HEAD)
    assert answered.stays()


def test_a_thread_does_not_stay_where_nothing_comes(answered: Answered) -> None:
    assert not answered.stays()


def test_a_thread_does_not_wait_for_the_rest_of_a_head(answered: Answered) -> None:
    answered.client.sendall(HEAD[:-2])
    assert not answered.stays()


def test_a_thread_does_not_stay_while_another_connection_waits_for_one(answered: Answered) -> None:
    answered.client.sendall(HEAD)
    answered.worker._unserved.append(answered.connection)
    assert not answered.stays()


def test_a_thread_sees_a_connection_off_that_was_closed(answered: Answered) -> None:
    answered.client.close()
    assert answered.stays()
