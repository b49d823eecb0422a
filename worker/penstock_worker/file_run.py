"""One job that works on a model's files, from its claim to what is to be written down of it.

What each stage has made lies in the job's folder, so whoever claims the job next begins after the last whole stage,
and the quantization after its last whole block.
"""

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from penstock.compressions.folders import MakingFolder
from penstock.compressions.gathering import Gathered
from penstock.compressions.models import Compression
from penstock.compressions.schemas import EvaluateRequest, QuantizeRequest, asked_by
from penstock.compressions.versions import FiledVersion
from penstock.errors import PenstockError
from penstock.jobs.models import Job
from penstock.registry.folder import verify

from penstock_worker.tool_process import TOOL, ToolProcess

LOOK_SECONDS: Final = 0.2
_STOPPED: Final = "stopped"


class ToolFailed(PenstockError):
    """The tool refused its work, and said why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code_told = code


class ToolCrashed(Exception):
    """The tool ended, or stood still, without a word."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is: `done` of `of` parts, and where it is in a word or two."""

    stage: str
    done: int
    of: int
    what: str


@dataclass(slots=True)
class FileRun:
    """The work of one claim.

    `tend` is called every moment, raises whatever ends the work from outside, and is told whether there was a sign of
    life since; `told` is called with progress. `gather` reads the job's text.
    """

    job: Job
    row: Compression
    folder: MakingFolder
    gather: Callable[[QuantizeRequest | EvaluateRequest], Gathered]
    tend: Callable[[bool], None]
    told: Callable[[Progress], None]
    tool: str = TOOL
    tool_seconds: float = 0.0
    _cpu: float = 0.0
    _last: dict[str, Any] = field(default_factory=dict)

    def make(self) -> dict[str, Any]:
        """Do the work; what was made, as `publishing.note_made` keeps it. Raises PenstockError, ToolCrashed."""
        request = asked_by(self.job.kind, self.job.input, self.job.model)
        model = FiledVersion.from_row(self.row.model)
        with self._alone() as lock:
            if isinstance(request, QuantizeRequest):
                return self._quantize(request, model, lock)
            return self._evaluate(request, model, lock)

    def _quantize(self, request: QuantizeRequest, model: FiledVersion, lock: int) -> dict[str, Any]:
        name = request.name or model.name
        self._write_texts(request)
        made = self._kept("quantize") or self._tool("quantize", self._quantization(request, model), lock)
        figures = None
        if request.evaluation is not None:
            figures = self._figures(self._made_model(name), Path(model.source), lock)
        kept = self.folder.keep(name)
        return {
            "name": name,
            "folder": str(kept),
            "alias": request.alias,
            "parameters": made["recipe"],
            "recipe": made["recipe"],
            "bytes": made["bytes"],
            "source_bytes": made["source_bytes"],
            "ratio": made["bytes"] / made["source_bytes"],
            "figures": figures,
        }

    def _evaluate(self, request: EvaluateRequest, model: FiledVersion, lock: int) -> dict[str, Any]:
        assert self.row.against is not None
        against = FiledVersion.from_row(self.row.against)
        self._write_texts(request)
        self._verify(model)
        figures = self._figures(Path(model.source), Path(against.source), lock, verified=against)
        return {
            "name": model.name,
            "folder": None,
            "alias": None,
            "parameters": {"against": against.spelled},
            "figures": figures,
        }

    def _quantization(self, request: QuantizeRequest, model: FiledVersion) -> list[str]:
        self._verify(model)
        calibration = ["--calibration", str(self.folder.calibration)] if request.recipe.calibrated else []
        return ["quantize", model.source, "--out", str(self.folder.model), *request.recipe.arguments(), *calibration]

    def _figures(
        self, candidate: Path, parent: Path, lock: int, *, verified: FiledVersion | None = None
    ) -> dict[str, Any]:
        kept = self._kept("evaluate")
        if kept is None:
            if verified is not None:
                self._verify(verified)
            arguments = ["evaluate", str(candidate), "--against", str(parent), "--data", str(self.folder.evaluation)]
            kept = self._tool("evaluate", arguments, lock)
        return {name: _without_path(value) for name, value in kept["figures"].items()}

    def _made_model(self, name: str) -> Path:
        """Where what was made lies: moved already, where an earlier run came so far."""
        kept = self.folder.root / name / self.folder.job_id
        return kept if kept.exists() else self.folder.model

    # Stages

    def _kept(self, stage: str) -> dict[str, Any] | None:
        """What an earlier run told at the stage's end."""
        try:
            kept: dict[str, Any] = json.loads(self._told_at(stage).read_text())
        except FileNotFoundError:
            return None
        return kept

    def _told_at(self, stage: str) -> Path:
        return self.folder.path / f"{stage}.json"

    def _tool(self, stage: str, arguments: list[str], lock: int) -> dict[str, Any]:
        """Run the tool to its end, tending all the while. What it told last is kept."""
        tool = ToolProcess([*arguments, "--progress", "json"], self.folder.path / "log", lock, self.tool)
        began, ended = time.monotonic(), None
        self._cpu, self._last = 0.0, {}
        try:
            while ended is None:
                over = tool.ended_within(LOOK_SECONDS)
                ended = self._hear(stage, tool, over=over)
        finally:
            tool.stop()
            self.tool_seconds += time.monotonic() - began
        if ended["event"] == "failed":
            raise ToolFailed(ended["code"], ended["message"])
        self.folder.write(self._told_at(stage), [json.dumps(ended)])
        return ended

    def _hear(self, stage: str, tool: ToolProcess, *, over: bool) -> dict[str, Any] | None:
        """Pass on what the tool says; its last word, once it has ended. Raises ToolCrashed where there is none."""
        cpu_before = self._cpu
        self._cpu = tool.cpu_seconds
        told = tool.take()
        for event in told:
            self._last = event
            if event.get("event") == "progress":
                self.told(Progress(stage, event["done"], event["of"], event["what"]))
        self.tend(bool(told) or self._cpu > cpu_before)
        if over and (self._last.get("event") not in ("done", "failed") or self._last.get("code") == _STOPPED):
            raise ToolCrashed(f"{stage} {tool.last_words}")
        return self._last if over else None

    # What it works on

    def _write_texts(self, request: QuantizeRequest | EvaluateRequest) -> None:
        """Both files, once: a run that goes on must have the very text that the first one had."""
        marker = self.folder.path / "texts"
        if marker.exists():
            return
        gathered = self.gather(request)
        if gathered.evaluation is not None:
            self.folder.write(self.folder.evaluation, gathered.evaluation)
        if gathered.calibration is not None:
            self.folder.write(self.folder.calibration, gathered.calibration)
        marker.touch()

    def _verify(self, version: FiledVersion) -> None:
        """That the files are those that were registered. Raises `ModelFolderInvalid`."""

        def hashed(done: int, total: int) -> None:
            self.told(Progress("verify", done, total, f"bytes of {version.spelled}"))
            self.tend(True)

        verify(Path(version.source), version.manifest, hashed)

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """The lock of the job's folder, which a tool that outlived its worker may hold a while."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with self.folder.lock.open("w") as file:
            while not _locked(file.fileno()):
                self.tend(True)
                time.sleep(LOOK_SECONDS)
            yield file.fileno()


def _without_path(figure: Any) -> Any:
    """A model's figures without the folder where it lay: it is on the worker, and moves."""
    return {name: value for name, value in figure.items() if name != "path"} if isinstance(figure, dict) else figure


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
