"""Engines that end before they are ready: killed ones begin again a few times, and others wait to be mended."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from penstock.deployments.placement import Desired
from penstock.deployments.services import Wanted
from penstock.registry.folder import describe
from penstock.registry.hosting_services import HostingState
from penstock.registry.models import Deployment
from penstock_worker import hosted_model
from penstock_worker.hosted_model import KILL_PAUSES, HostedModel
from penstock_worker.messages import EngineSpec
from penstock_worker.room import Room

from tests.patience import PATIENCE_SECONDS
from tests.worker.bridging import idle_writer

TIMES = len(KILL_PAUSES)
KILLED, EXITED = "os.kill(os.getpid(), 9)", "os._exit(3)"


class Hosted:
    """A model whose engine is a program that notes its start and ends at once; `failed` is set when that shows."""

    def __init__(self, folder: Path, notes: Path, ends: str) -> None:
        self._notes = notes
        self.failed = threading.Event()
        code = f"import os; n = open({str(notes)!r}, 'a+'); n.write('x'); n.flush(); n.seek(0); times = len(n.read())"
        deployment = Deployment(id="dep_1", source=str(folder), manifest=describe(folder).manifest)
        deployment.model_name, deployment.model_version = "tiny", "1"
        self.model = HostedModel(
            Wanted(deployment, Desired(), needed=True, traffic=1.0),
            EngineSpec(str(folder), max_running=1, name="dep_1"),
            idle_writer(),
            room=Room(total=None, kv=None),
            stall_seconds=60,
            changed=self._look,
            program=("-S", "-c", f"{code}\n{ends}"),
        )

    @property
    def starts(self) -> int:
        return len(self._notes.read_text())

    def wait(self) -> str:
        """Until it has failed; how."""
        self.model.start()
        assert self.failed.wait(PATIENCE_SECONDS), "it never failed"
        return self.model.report.error or ""

    def _look(self) -> None:
        if self.model.state is HostingState.FAILED:
            self.failed.set()


@pytest.fixture
def hosted(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Hosted]]:
    monkeypatch.setattr(hosted_model, "KILL_PAUSES", [0.0] * TIMES)
    made: list[Hosted] = []

    def make(ends: str) -> Hosted:
        made.append(Hosted(model_folder, tmp_path / "starts", ends))
        return made[-1]

    yield make
    for each in made:
        each.model.unload()
        each.model.join(PATIENCE_SECONDS)
        assert each.model.gone


def test_an_engine_that_is_killed_while_it_loads_begins_again_but_not_for_ever(
    hosted: Callable[[str], Hosted],
) -> None:
    model = hosted(KILLED)
    assert model.wait() == "the engine process was ended by SIGKILL"
    assert model.starts == 1 + TIMES


def test_one_that_ends_by_itself_waits_to_be_mended(hosted: Callable[[str], Hosted]) -> None:
    model = hosted(EXITED)
    assert model.wait() == "the engine process ended with exit code 3"
    assert model.starts == 1


def test_kills_of_long_ago_count_no_more(hosted: Callable[[str], Hosted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted_model, "KILLS_SECONDS", 0.0)
    model = hosted(f"{KILLED} if times <= {TIMES + 2} else {EXITED}")
    assert model.wait() == "the engine process ended with exit code 3"
    assert model.starts == TIMES + 3
