"""The one folder that holds everything an embedded platform keeps.

lock            held (flock) by the running supervisor; says its process id
secrets.json    0600: passwords and keys, made once
running.json    0600: the running supervisor's address and children, for whoever comes after it
ports.json      the services' ports, so that the next start finds them where they were
programs/       copies of programs that the services' user cannot reach where they are installed
postgres/  redis/  mlflow/  logs/
"""

import base64
import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from penstock.embedded import ports
from penstock.embedded.accounts import Account, require_passage, service_account
from penstock.embedded.errors import NoDiskSpace, StateFolderBusy, StateFolderUnusable

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
MINIMUM_FREE_BYTES = 256 * 2**20  # a new database takes 60 MiB, its write-ahead log up to 128 MiB


def default_state_dir() -> Path:
    """`~/.penstock`; for root `/var/lib/penstock`, since no other user can pass through root's home."""
    return Path("/var/lib/penstock") if os.geteuid() == 0 else Path.home() / ".penstock"


def environment_of_running(root: Path) -> dict[str, str]:
    """The variables that a shell needs to work with the platform that runs on this folder.

    Raises StateFolderUnusable when none runs there, or when it is another user's.
    """
    root = root.expanduser().absolute()
    try:
        running: dict[str, Any] = json.loads((root / "running.json").read_text())
    except FileNotFoundError:
        running = {}
    except PermissionError as error:
        raise StateFolderUnusable(root, "belongs to another user") from error
    if "environment" not in running or (root / "lock").read_text() != str(running["pid"]) or not _is_locked(root):
        raise StateFolderUnusable(root, "no platform runs on this folder; start it with `penstock up`")
    environment: dict[str, str] = running["environment"]
    return environment


def _is_locked(root: Path) -> bool:
    with (root / "lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _password() -> str:
    return secrets.token_urlsafe(24)


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


@dataclass(frozen=True)
class Secrets:
    """What the services and the platform keep secret; made at the first start, kept in `secrets.json`."""

    postgres_password: str = field(default_factory=_password, repr=False)
    penstock_password: str = field(default_factory=_password, repr=False)
    mlflow_password: str = field(default_factory=_password, repr=False)
    redis_password: str = field(default_factory=_password, repr=False)
    mlflow_passphrase: str = field(default_factory=_password, repr=False)
    webhook_encryption_key: str = field(default_factory=_fernet_key, repr=False)
    session_key: str = field(default_factory=_password, repr=False)
    registry_webhook_secret: str = field(default_factory=_password, repr=False)


class StateFolder:
    """The paths below one state folder, and the few files that the supervisor itself keeps there."""

    def __init__(self, root: Path, *, minimum_free_bytes: int = MINIMUM_FREE_BYTES) -> None:
        """Create the folder if need be and check that it can be used.

        Raises StateFolderUnusable, and NoDiskSpace when fewer than `minimum_free_bytes` are free.
        """
        self.root = root.expanduser().absolute()
        self.postgres = self.root / "postgres"
        self.redis = self.root / "redis"
        self.mlflow = self.root / "mlflow"
        self.logs = self.root / "logs"
        self.programs = self.root / "programs"
        with self.full_disk_named():
            self._create()
        self._minimum_free_bytes = minimum_free_bytes
        self.account: Account | None = service_account(self.postgres / "data")
        require_passage(self.root, self.account)
        self.check_free_space()

    def _create(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.mlflow, self.logs):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise StateFolderUnusable(self.root, f"cannot be made a folder of ours: {error.strerror}") from error

    @property
    def free_bytes(self) -> int:
        """What the folder's disk still takes from an ordinary user."""
        return shutil.disk_usage(self.root).free

    def check_free_space(self) -> None:
        """Raise NoDiskSpace when the disk is nearly full."""
        if self.free_bytes < self._minimum_free_bytes:
            raise NoDiskSpace(self.root, self.free_bytes, self._minimum_free_bytes)

    @contextmanager
    def full_disk_named(self) -> Iterator[None]:
        """Turn the system's "no space left on device" into NoDiskSpace."""
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            free = self.free_bytes if self.root.exists() else 0
            raise NoDiskSpace(self.root, free) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. Raises StateFolderBusy when another process holds it.

        The kernel drops the lock when the process ends, however it ends, so a stale one cannot exist.
        """
        lock = self.root / "lock"
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                running, holder = self.read_running(), lock.read_text()
                url = running.get("url") if holder == str(running.get("pid")) else None
                raise StateFolderBusy(self.root, holder, url) from error
            with self.full_disk_named():
                lock.write_text(str(os.getpid()))
            yield
        finally:
            os.close(descriptor)

    def secrets(self) -> Secrets:
        """The secrets, made at the first start. Raises StateFolderUnusable when the data outlived them."""
        kept = self._read("secrets.json")
        if not kept and (self.postgres / "data").exists():
            raise StateFolderUnusable(
                self.root, "has a database but no secrets.json with its passwords; restore that file"
            )
        found = Secrets(**{name: kept[name] for name in (f.name for f in fields(Secrets)) if name in kept})
        if asdict(found) != kept:
            self.write_private("secrets.json", asdict(found))
        return found

    def read_running(self) -> dict[str, Any]:
        """What the running (or the last killed) supervisor wrote about itself; empty when there is none."""
        return self._read("running.json")

    def forget_running(self) -> None:
        """Say that nothing runs here any more."""
        (self.root / "running.json").unlink(missing_ok=True)

    def port(self, service: str, chosen: int | None, setting: str, host: str = ports.LOOPBACK) -> int:
        """A service's port: the chosen one, else last time's if free, else any. Raises PortInUse."""
        known = self._read("ports.json")
        port = ports.choose(chosen, known.get(service), setting, host)
        if known.get(service) != port:
            self.write_private("ports.json", known | {service: port})
        return port

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.root / name).read_text())
        except FileNotFoundError:
            return {}
        return content

    def write_private(self, name: str, content: dict[str, Any]) -> None:
        """Replace the file `name` (mode 0600) in one step: a crash leaves the old one or the new one."""
        partial = self.root / f"{name}.partial"
        with self.full_disk_named():
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(descriptor)
            partial.replace(self.root / name)
