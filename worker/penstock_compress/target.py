"""The folder that comes of it: written part by part, so that a killed run goes on, and whole when it has its name."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from penstock_compress.errors import TargetUnusable

PROGRESS: Final = "progress.json"
PLAN: Final = "plan.json"
REPORT: Final = "compression.json"
_CARRIED: Final = (".json", ".model", ".txt", ".jinja", ".tiktoken")
_NOT_CARRIED: Final = ("config.json", "model.safetensors.index.json", REPORT)


class Target:
    """`folder`, which is not there yet; `work` beside it holds what is done.

    `identity` says what a run that was killed goes on with. Raises TargetUnusable.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.work = folder, folder.with_name(f"{folder.name}.partial")
        if folder.exists():
            raise TargetUnusable(folder, "is there already; remove it, or name another")
        self._identity = identity
        kept = _read_json(self.work / PROGRESS)
        if kept is not None and kept.get("identity") != identity:
            raise TargetUnusable(self.work, "holds the beginning of another run; remove it, or name another folder")
        self.report: list[dict[str, Any]] = [] if kept is None else kept["report"]
        self.done: list[str] = [] if kept is None else kept["done"]
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetUnusable(folder, f"cannot be written ({error})") from None

    def write(self, part: str, tensors: dict[str, Tensor], report: list[dict[str, Any]]) -> None:
        """Keep `part`, all of it or nothing. `report` says what was done to its layers."""
        path = self.work / f"{part}.safetensors"
        _replace(path, lambda to: save_file(tensors, to, metadata={"format": "pt"}))
        self.done.append(part)
        self.report += report
        told = {"identity": self._identity, "done": self.done, "report": self.report}
        _replace(self.work / PROGRESS, lambda to: to.write_text(json.dumps(told)))

    def finish(self, source: Path, config: dict[str, Any], report: dict[str, Any]) -> None:
        """Name the parts as a checkpoint, write what else it holds, and give the folder its name."""
        count = len(self.done)
        weight_map: dict[str, str] = {}
        for number, part in enumerate(self.done, 1):
            shard = f"model-{number:05}-of-{count:05}.safetensors"
            path = self.work / f"{part}.safetensors"
            with safe_open(path if path.exists() else self.work / shard, framework="pt") as file:
                weight_map |= dict.fromkeys(file.keys(), shard)
            if path.exists():
                path.rename(self.work / shard)
        total = sum((self.work / shard).stat().st_size for shard in set(weight_map.values()))
        _write_json(
            self.work / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
        _write_json(self.work / "config.json", config)
        told = {"identity": self._identity, **report, "bytes": total, "layers": self.report}
        _write_json(self.work / REPORT, told)
        for path in source.iterdir():
            if path.is_file() and path.suffix in _CARRIED and path.name not in _NOT_CARRIED:
                shutil.copy2(path, self.work / path.name)
        for path in (self.work / PROGRESS, self.work / PLAN, *self.work.glob("states-*.tensors")):
            path.unlink(missing_ok=True)
        self.work.rename(self.folder)

    def plan(self) -> dict[str, Any] | None:
        """What a killed run had planned; None where it had not come to it."""
        return _read_json(self.work / PLAN)

    def keep_plan(self, plan: dict[str, Any]) -> None:
        """Keep what the run is going by."""
        _replace(self.work / PLAN, lambda to: to.write_text(json.dumps(plan)))

    def states(self, block: int) -> list[Tensor]:
        """The hidden states that `block` gets, as a killed run kept them."""
        kept = load_file(self._states(block))
        return [kept[str(row)] for row in range(len(kept))]

    def keep_states(self, block: int, states: list[Tensor]) -> None:
        """Keep what `block` gets; the one before it is still to be written."""
        tensors = {str(row): state for row, state in enumerate(states)}
        _replace(self._states(block), lambda to: save_file(tensors, to))

    def drop_states(self, block: int) -> None:
        self._states(block).unlink(missing_ok=True)

    def _states(self, block: int) -> Path:
        return self.work / f"states-{block:04}.tensors"


def finished(folder: Path, identity: str) -> bool:
    """Whether `folder` is what a run of this identity has made."""
    try:
        return bool(json.loads((folder / REPORT).read_text()).get("identity") == identity)
    except (OSError, ValueError, AttributeError):
        return False


def _replace(path: Path, write: Any) -> None:
    """Write a file beside `path` and move it there, so that it is never half there."""
    beside = path.with_suffix(".new")
    write(beside)
    beside.replace(path)


def _write_json(path: Path, told: dict[str, Any]) -> None:
    path.write_text(json.dumps(told, indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        kept = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TargetUnusable(path, f"cannot be read ({error}); remove the folder to begin anew") from None
    return dict(kept)
