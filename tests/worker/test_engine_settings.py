"""What an operator sets of an engine reaches it, and what cannot be is told by the name of the variable."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from penstock.registry.models import Deployment
from penstock.settings import Settings
from penstock_worker.engine_loop import serve
from penstock_worker.hosting import spec_of
from penstock_worker.messages import (
    Broken,
    Commands,
    EngineSpec,
    Loading,
    Ready,
    Sampling,
    StepReport,
    Submit,
    decode_report,
    encode,
)

PATIENCE_SECONDS = 60
CHOSEN = {
    "quantization": "int8",
    "kv_dtype": "fp8",
    "graphs": "off",
    "overlap": "on",
    "memory_share": 0.8,
    "max_model_len": 2048,
    "kv_bytes": 2**30,
    "threads": 3,
}


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    monkeypatch.setenv("PENSTOCK_REDIS_URL", "redis://127.0.0.1:1/0")


@pytest.mark.usefixtures("services")
def test_every_variable_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment(id="dep_1", source="/models/a")
    unset = spec_of(deployment, Settings.from_environment())
    for name, value in CHOSEN.items():
        monkeypatch.setenv(f"PENSTOCK_ENGINE_{name.upper()}", str(value))
    spec = spec_of(deployment, Settings.from_environment())
    assert {name: getattr(spec, name) for name in CHOSEN} == CHOSEN
    told_nothing = EngineSpec("/models/a", 1)
    assert [getattr(unset, name) for name in CHOSEN] == [getattr(told_nothing, name) for name in CHOSEN]


class Far:
    """The worker's end of an engine's pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def loaded(self) -> Ready | Broken:
        while isinstance(message := self._hear(), Loading):
            pass
        assert isinstance(message, Ready | Broken)
        return message

    def generate(self, **sampling: Any) -> list[StepReport]:
        """All reports until a choice has ended or was refused."""
        submit = Submit("a", [5, 6, 7], [[]], Sampling(temperature=0, ignore_eos=True, **sampling), "ten", 0, "batch")
        self._connection.send_bytes(encode(Commands(submits=[submit])))
        reports: list[StepReport] = []
        while not any(report.refusals or any(delta.finish_reason for delta in report.deltas) for report in reports):
            report = self._hear()
            assert isinstance(report, StepReport)
            reports.append(report)
        return reports

    def _hear(self) -> Any:
        assert self._connection.poll(PATIENCE_SECONDS)
        return decode_report(self._connection.recv_bytes())


@contextmanager
def engine(folder: Path, **fields: Any) -> Iterator[Far]:
    near, far = Pipe()
    thread = threading.Thread(target=serve, args=(far,))
    thread.start()
    near.send_bytes(encode(EngineSpec(str(folder), 2, device="cpu", threads=1, **{"kv_bytes": 2**25} | fields)))
    try:
        yield Far(near)
    finally:
        near.close()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def test_the_context_is_as_long_as_was_set(model_folder: Path) -> None:
    with engine(model_folder, max_model_len=24) as far:
        assert isinstance(far.loaded(), Ready)
        deltas = [delta for report in far.generate() for delta in report.deltas]
        assert (len(deltas), deltas[-1].finish_reason) == (24 - 3, "length")


def test_a_model_with_a_shorter_context_than_was_set_keeps_its_own(model_folder: Path) -> None:
    with engine(model_folder, max_model_len=10**6) as far:
        assert isinstance(far.loaded(), Ready)


def test_what_cannot_be_is_told_by_its_variable(model_folder: Path) -> None:
    with engine(model_folder, kv_bytes=1) as far:
        broken = far.loaded()
        assert isinstance(broken, Broken)
        assert broken.code == "invalid_engine_config"
        assert broken.message.startswith("engine setting 'kv_bytes'")
        assert broken.message.endswith("(PENSTOCK_ENGINE_KV_BYTES)")
