"""Which processes of an earlier run are ended, and which are somebody else's."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock.embedded.leftovers import describe_children, end_leftovers
from penstock.embedded.service import silent
from penstock.embedded.state_folder import StateFolder

from tests.platform.embedded.probes import alive, eventually

pytestmark = pytest.mark.drill

PARENT = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(state_dir: Path) -> StateFolder:
    """A state folder."""
    return StateFolder(state_dir)


@pytest.fixture
def leader() -> Iterator[subprocess.Popen[str]]:
    """A process that leads a session, as every child of a supervisor does."""
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        yield process
        process.kill()


@pytest.fixture
def descendant(leader: subprocess.Popen[str]) -> int:
    """Its child."""
    assert leader.stdout is not None
    return int(leader.stdout.readline())


def test_a_child_that_lives_on_is_ended_with_its_descendants(
    folder: StateFolder, leader: subprocess.Popen[str], descendant: int
) -> None:
    folder.write_private("running.json", describe_children({"web": leader.pid}))
    told: list[str] = []
    end_leftovers(folder, lambda name, line: told.append(f"{name} {line}"))
    assert leader.wait() < 0
    assert not alive(descendant)
    assert told == [f"web ending process {leader.pid} of an earlier run"]
    assert folder.read_running() == {}


def test_descendants_of_a_dead_child_are_ended(
    folder: StateFolder, leader: subprocess.Popen[str], descendant: int
) -> None:
    folder.write_private("running.json", describe_children({"worker": leader.pid}))
    leader.kill()
    leader.wait()
    assert alive(descendant)
    end_leftovers(folder, silent)
    assert not alive(descendant)


@pytest.mark.parametrize("changed", [{"started": "1"}, {"machine": "another boot"}])
def test_a_stranger_with_a_remembered_id_is_left_alone(
    folder: StateFolder, leader: subprocess.Popen[str], descendant: int, changed: dict[str, str]
) -> None:
    facts = describe_children({"web": leader.pid})
    facts["children"][0].update(changed)
    folder.write_private("running.json", facts | changed)
    end_leftovers(folder, silent)
    assert alive(leader.pid)
    assert alive(descendant)


def test_postgres_is_never_ended_here(folder: StateFolder, leader: subprocess.Popen[str]) -> None:
    folder.write_private("running.json", describe_children({"postgres": leader.pid}))
    end_leftovers(folder, silent)
    assert alive(leader.pid)


def test_what_has_ended_is_not_remembered(folder: StateFolder, leader: subprocess.Popen[str]) -> None:
    leader.kill()
    leader.wait()
    assert eventually(lambda: describe_children({"web": leader.pid})["children"] == [])
