"""How the tests look at services from outside."""

import os
from collections.abc import Callable

import psutil
import psycopg
import redis
from penstock.embedded import EmbeddedServices

from tests.patience import looks


def connect(url: str) -> psycopg.Connection:
    """A connection to SQLAlchemy's address of a database."""
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def write_marks(services: EmbeddedServices, mark: str) -> None:
    """Leave a mark in PostgreSQL and in Redis."""
    with connect(services.database_url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS mark (text text)")
        connection.execute("INSERT INTO mark VALUES (%s)", [mark])
    with redis.Redis.from_url(services.redis_url) as client:
        client.rpush("mark", mark)


def read_marks(services: EmbeddedServices) -> tuple[list[str], list[str]]:
    """The marks found in PostgreSQL and in Redis."""
    with connect(services.database_url) as connection:
        rows = [row[0] for row in connection.execute("SELECT text FROM mark").fetchall()]
    with redis.Redis.from_url(services.redis_url, decode_responses=True) as client:
        return rows, client.lrange("mark", 0, -1)


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether the condition comes true; the time is only what a hanging test may take."""
    return any(condition() for _ in looks(seconds))


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def users_of(folder: os.PathLike[str]) -> list[psutil.Process]:
    """The processes, other than this one, that work in a folder or have a file open there."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            places = [process.cwd(), *(file.path for file in process.open_files()), *process.cmdline()]
        except psutil.Error:
            continue
        if any(str(folder) in place for place in places):
            found.append(process)
    return found
