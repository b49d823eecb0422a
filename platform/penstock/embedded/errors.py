"""What can keep the embedded platform from starting or running.

PenstockError
└── EmbeddedError
    ├── StateFolderBusy        another supervisor runs on this state folder
    ├── StateFolderUnusable    the folder cannot be used as it is
    ├── PortInUse              somebody else listens on the chosen port
    ├── NoDiskSpace            the state folder's disk is (nearly) full
    ├── ServiceMissing         the package that ships a service is not installed
    └── ServiceFailed          a service ended before it was ready
"""

from pathlib import Path

from penstock.errors import PenstockError


class EmbeddedError(PenstockError):
    """The embedded platform cannot start or go on."""

    code = "embedded_error"
    status = 500


class StateFolderBusy(EmbeddedError):
    """Another supervisor already runs on this state folder."""

    code = "state_folder_busy"

    def __init__(self, folder: Path, pid: str, url: str | None) -> None:
        self.folder, self.pid, self.url = folder, pid, url
        where = f" at {url}" if url else ""
        super().__init__(
            f"Penstock already runs on {folder} (process {pid or 'not yet known'}){where}. "
            "Stop it first, or choose another folder with --state-dir or PENSTOCK_STATE_DIR."
        )


class StateFolderUnusable(EmbeddedError):
    """The state folder cannot be used as it is: the message names the folder and what would help."""

    code = "state_folder_unusable"

    def __init__(self, folder: Path, problem: str) -> None:
        self.folder = folder
        super().__init__(f"{folder}: {problem}")


class PortInUse(EmbeddedError):
    """Somebody else listens on the port that was chosen for a service."""

    code = "port_in_use"

    def __init__(self, port: int, setting: str, host: str = "127.0.0.1") -> None:
        self.port, self.setting, self.host = port, setting, host
        super().__init__(f"Port {port} on {host} is in use by another program. Choose another one with {setting}.")


class NoDiskSpace(EmbeddedError):
    """The disk of the state folder is full, or too nearly full to start."""

    code = "no_disk_space"

    def __init__(self, folder: Path, free_bytes: int, needed_bytes: int | None = None) -> None:
        self.folder, self.free_bytes, self.needed_bytes = folder, free_bytes, needed_bytes
        need = f"; at least {needed_bytes / 2**20:.0f} MiB are needed" if needed_bytes else ""
        super().__init__(
            f"{folder} has {free_bytes / 2**20:.0f} MiB of free disk space{need}. "
            "Free some, or choose a folder on another disk with --state-dir or PENSTOCK_STATE_DIR."
        )


class ServiceMissing(EmbeddedError):
    """The package that ships a service's program is not installed."""

    code = "service_missing"

    def __init__(self, service: str, package: str, setting: str) -> None:
        self.service, self.package = service, package
        super().__init__(
            f"{service} needs the package {package}, which is not installed: "
            f"`pip install 'penstock[embedded]'`, or point {setting} at a server of your own."
        )


class ServiceFailed(EmbeddedError):
    """A service ended before it was ready; `last_lines` is the end of its log."""

    code = "service_failed"

    def __init__(self, service: str, reason: str, last_lines: tuple[str, ...] = ()) -> None:
        self.service, self.last_lines = service, last_lines
        tail = "".join(f"\n  {line}" for line in last_lines)
        super().__init__(f"{service} {reason}.{' Its last lines:' if tail else ''}{tail}")
