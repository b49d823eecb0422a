"""Inside the engine's process: take commands, step, report."""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, Self

import torch
from penstock_engine import (
    AlreadyFinished,
    Engine,
    EngineConfig,
    EngineError,
    InvalidConfig,
    RequestRefused,
    StepFailed,
    StepOutput,
)
from penstock_engine.model_config import read_model_config

from penstock_worker.engine_needs import needs_of
from penstock_worker.engine_requests import delta_of, request_from, scores_of
from penstock_worker.messages import (
    Broken,
    Commands,
    Ended,
    EngineSpec,
    FromEngine,
    Loading,
    Measures,
    Ready,
    Refusal,
    Share,
    StepReport,
    Submit,
    decode_commands,
    decode_grant,
    decode_spec,
    encode,
)
from penstock_worker.traces.file import TraceFile

_STATS_SECONDS: Final = 1.0
_PROGRESS_SECONDS: Final = 0.1
_SETTINGS_PREFIX: Final = "PENSTOCK_ENGINE_"
"""Of the variables that set those fields of an engine which a worker leaves to its operator."""
_OPERATORS: Final = frozenset(
    {"kv_bytes", "threads", "quantization", "kv_dtype", "graphs", "overlap", "memory_share", "max_model_len"}
)


def serve(connection: Connection) -> None:
    """Load what the first message names, then serve until told to stop or nobody is there any more."""
    try:
        spec = decode_spec(connection.recv_bytes())
        loop = _load(connection, spec)
        if loop is not None:
            with loop:
                loop.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the worker has ended


def _load(connection: Connection, spec: EngineSpec) -> "EngineLoop | None":
    try:
        config = _config(spec)
        if spec.shares_device:
            config = _granted(connection, spec, config)
        engine = Engine.from_folder(spec.folder, config, progress=_Progress(connection))
        engine.warm_up()  # before it is ready: a first step that compiles would look stuck
        loop = EngineLoop(connection, engine, _trace_file(spec, engine))
    except EngineError as error:
        _send(connection, Broken(error.code, _reason(error)))
        return None
    uuid = _device_uuid(config.device)
    _send(connection, Ready(config.device, engine.free_slots, uuid, engine.weight_bytes, engine.kv_bytes))
    return loop


def _granted(connection: Connection, spec: EngineSpec, config: EngineConfig) -> EngineConfig:
    """With the memory for K and V that the worker grants, once there is room. Raises ModelLoadError, InvalidConfig."""
    _send(connection, needs_of(Path(spec.folder), config))
    return replace(config, kv_bytes=decode_grant(connection.recv_bytes()).kv_bytes)


def _config(spec: EngineSpec) -> EngineConfig:
    """Raises ModelLoadError, InvalidConfig."""
    return EngineConfig(
        max_running=spec.max_running,
        token_budget=max(512, spec.max_running),
        device=_device(spec.device),
        kv_bytes=spec.kv_bytes,
        kv_dtype=spec.kv_dtype,
        memory_share=spec.memory_share,
        max_model_len=_shortened(spec),
        threads=spec.threads,
        tokenizer=_tokenizer(spec.folder),
        trace_steps=0 if spec.trace_folder is None else 1,  # the file keeps the others
        quantization=spec.quantization,
        graphs=spec.graphs,
        overlap=spec.overlap,
        deterministic=spec.deterministic,
    )


def _shortened(spec: EngineSpec) -> int | None:
    """The length that is asked for, where the model has more. One worker's models may differ in theirs."""
    if spec.max_model_len is None:
        return None
    own = read_model_config(Path(spec.folder)).max_positions
    return spec.max_model_len if spec.max_model_len < own else None


def _reason(error: EngineError) -> str:
    """What is wrong, with the variable that its reader can set."""
    if isinstance(error, InvalidConfig) and error.field in _OPERATORS:
        return f"{error} ({_SETTINGS_PREFIX}{error.field.upper()})"
    return str(error)


def _trace_file(spec: EngineSpec, engine: Engine) -> TraceFile | None:
    if spec.trace_folder is None:
        return None
    try:
        return TraceFile(Path(spec.trace_folder), spec.name, engine.trace.header)
    except OSError as error:
        raise InvalidConfig("trace_folder", f"PENSTOCK_TRACE_FOLDER must be a folder to write in: {error}") from error


class _Progress:
    """Passes the engine's loading progress on, a few times a second."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._told_at = 0.0

    def __call__(self, _stage: str, done: int, total: int) -> None:
        if time.monotonic() - self._told_at >= _PROGRESS_SECONDS:
            self._told_at = time.monotonic()
            _send(self._connection, Loading(done / total if total else 0.0))


class EngineLoop:
    """Owns the engine: nothing else touches it. Blocks on the connection while there is nothing to compute."""

    def __init__(self, connection: Connection, engine: Engine, trace_file: TraceFile | None = None) -> None:
        self._connection = connection
        self._engine = engine
        self._trace_file = trace_file
        self._refusals: list[Refusal] = []
        self._ended: list[Ended] = []
        self._received = 0
        self._pong = 0
        self._step = 0
        self._paused = False
        self._stopped = False
        self._stats_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._trace_file is not None:
            self._trace_file.close()

    def run(self) -> None:
        """Until a stop is asked for. Raises EOFError when the worker has gone."""
        while not self._stopped:
            told = self._take_commands()
            if self._engine.has_work and not self._paused:
                if not self._run_step():
                    return
            elif told:
                self._report()

    def _take_commands(self) -> bool:
        """Everything that has been asked by now; waits for something when there is nothing else to do."""
        told = False
        while self._connection.poll(0) or (not told and (self._paused or not self._engine.has_work)):
            self._apply(decode_commands(self._connection.recv_bytes()))
            told = True
        return told

    def _apply(self, commands: Commands) -> None:
        for submit in commands.submits:
            self._submit(submit)
        for request_id, choice in commands.aborts:
            self._engine.abort(request_id, choice)
        if commands.kv_bytes is not None:
            self._engine.resize(commands.kv_bytes)
            self._stats_at = 0.0  # the next report tells
        self._received += sum(submit.places for submit in commands.submits)
        self._pong = commands.ping or self._pong
        self._paused = commands.paused
        self._stopped = self._stopped or commands.stop

    def _submit(self, submit: Submit) -> None:
        try:
            ended: Mapping[int, str] = self._engine.submit(request_from(submit))
        except AlreadyFinished as error:
            ended = error.finish_reasons
        except RequestRefused as error:
            self._refusals.append(Refusal(submit.request_id, error.code, str(error)))
            return
        self._ended += [Ended(submit.request_id, choice, reason) for choice, reason in ended.items()]

    def _run_step(self) -> bool:
        """One step. False after one that failed: what it left on the device is not to be trusted."""
        try:
            output = self._engine.step()
        except StepFailed as error:
            # Each job of the batch is told the reason, so it names none of the others.
            reason = f"step {error.step} failed with {type(error.cause).__name__}: {error.cause}"
            _send(self._connection, Broken(error.code, reason))
            return False
        self._take_failures(output)
        self._step = output.step
        if self._trace_file is not None:
            self._trace_file.take(self._engine.trace)
        self._report(output)
        return True

    def _take_failures(self, output: StepOutput) -> None:
        for failure in output.failed:
            self._refusals.append(Refusal(failure.request_id, failure.code, failure.message))

    def _report(self, output: StepOutput | None = None) -> None:
        refusals, self._refusals = self._refusals, []
        ended, self._ended = self._ended, []
        report = StepReport(
            step=self._step,
            received=self._received,
            free_slots=self._engine.free_slots,
            deltas=[delta_of(delta) for delta in output.deltas] if output else [],
            refusals=refusals,
            ended=ended,
            prompt_scores=[scores_of(scores) for scores in output.prompt_logprobs] if output else [],
            pong=self._pong,
            stats=self._stats_if_due(),
            admitted=output.admitted if output else [],
            shares=[Share(*share) for share in output.shares] if output else [],
            measures=[Measures(*measures) for measures in output.measures] if output else [],
            began_at=output.started if output else 0.0,
            ended_at=output.ended if output else 0.0,
        )
        _send(self._connection, report)

    def _stats_if_due(self) -> dict[str, int | float] | None:
        if time.monotonic() - self._stats_at < _STATS_SECONDS:
            return None
        self._stats_at = time.monotonic()
        return asdict(self._engine.stats())


def _send(connection: Connection, message: FromEngine) -> None:
    connection.send_bytes(encode(message))


def _tokenizer(folder: str) -> str | None:
    """What grammars learn the bytes of tokens from; a folder without it serves all other jobs."""
    path = Path(folder) / "tokenizer.json"
    return str(path) if path.is_file() else None


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def _device_uuid(device: str) -> str | None:
    """What NVML knows the engine's GPU by; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
