"""Which user a service runs as, and what that user can reach.

PostgreSQL refuses to run as root, and Redis has no business to. When Penstock runs as root its database
services run as an account that exists on every Unix; none is ever created, and nothing outside the state
folder changes its mode.
"""

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from penstock.embedded.errors import StateFolderUnusable

CANDIDATES = ("nobody", "daemon")
BUILD_ONLY = shutil.ignore_patterns("include", "*.a", "pkgconfig")


@dataclass(frozen=True)
class Account:
    """An unprivileged user of this machine."""

    name: str
    uid: int
    gid: int

    def can(self, test: str, path: Path) -> bool:
        """Whether this user passes `test -x`, `-r`, ... on `path`; the kernel answers, so ACLs count."""
        probe = subprocess.run(
            ["/bin/sh", "-c", 'test "$1" "$2"', "sh", test, str(path)],
            cwd="/",
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            check=False,
        )
        return probe.returncode == 0


def service_account(data_folder: Path) -> Account | None:
    """The user for the services: None (ourselves) unless we are root.

    A data folder that exists stays with its owner, so that a new account on the machine cannot lock us out of
    it. Raises StateFolderUnusable when the folder is another user's, or no unprivileged account exists.
    """
    owner = data_folder.stat().st_uid if data_folder.exists() else None
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            raise StateFolderUnusable(data_folder, "belongs to another user; run as that user or as root")
        return None
    if owner:
        return _account_of(owner)
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise StateFolderUnusable(data_folder, f"needs one of the accounts {CANDIDATES}, since root may not own it")


def _account_of(uid: int) -> Account:
    entry = pwd.getpwuid(uid)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def own_folder(folder: Path, account: Account | None) -> None:
    """Make `folder` exist, private (0700) to the account."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if account is not None:
        os.chown(folder, account.uid, account.gid)


def require_passage(folder: Path, account: Account | None) -> None:
    """Make sure that the account can pass through the state folder to its own folders below.

    Raises StateFolderUnusable naming the first parent that stops it.
    """
    if account is None:
        return
    try:
        passes = account.can("-x", folder)
    except OSError as error:
        raise StateFolderUnusable(
            folder,
            f"needs a database, which may not run as root, and we cannot become the user {account.name} here "
            f"({error.strerror}); run Penstock as an ordinary user",
        ) from error
    if passes:
        return
    for parent in reversed(folder.parents):
        if not account.can("-x", parent):
            raise StateFolderUnusable(
                folder,
                f"its parent {parent} is closed to the user {account.name}, whom the database runs as "
                "since we are root. Choose a folder elsewhere (for example /var/lib/penstock) with "
                "--state-dir or PENSTOCK_STATE_DIR, or run Penstock as an ordinary user",
            )
    folder.chmod(folder.stat().st_mode | 0o011)


def reachable(program: Path, package_root: Path, copy_root: Path, account: Account | None) -> Path:
    """`program`, or its twin in a copy of `package_root` when the account cannot reach the installed one.

    The copy is of hard links where the disk allows (no space), else of files (24 MB for PostgreSQL).
    """
    if account is None or account.can("-x", program):
        return program
    if not copy_root.exists():
        partial = copy_root.with_name(copy_root.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(mode=0o755, exist_ok=True)
        shutil.copytree(package_root, partial, symlinks=True, ignore=BUILD_ONLY, copy_function=_link_or_copy)
        for folder in (partial.parent, partial, *(path for path in partial.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        partial.rename(copy_root)
    return copy_root / program.relative_to(package_root)


def _link_or_copy(source: str, target: str) -> str:
    """A hard link shares its mode with the file outside our folder, so a file closed to others is copied."""
    mode = Path(source).stat().st_mode
    if mode & 0o004:
        try:
            os.link(source, target)
        except OSError:  # another disk
            shutil.copy2(source, target)
    else:
        shutil.copy2(source, target)
        Path(target).chmod(mode | (0o555 if mode & 0o100 else 0o444))
    return target
