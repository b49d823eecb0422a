"""Where versions are made and kept: one folder that every worker and control process reaches.

<root>/<name>/<job>         a finished version, as it is registered
<root>/.making/<job>/       what a job is at: its text, and `model.partial` or `model`
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from penstock.embedded.state_folder import default_state_dir
from penstock.settings import Settings


@dataclass(frozen=True, slots=True)
class MakingFolder:
    """A job's place while it is at work; whoever claims the job next finds in it what is done."""

    root: Path
    job_id: str

    @property
    def path(self) -> Path:
        return self.root / ".making" / self.job_id

    @property
    def model(self) -> Path:
        """What the compressor writes; it has the name once it is whole."""
        return self.path / "model"

    @property
    def calibration(self) -> Path:
        return self.path / "calibration.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the process at work here, so that no second one writes beside it."""
        return self.path / "lock"

    def keep(self, name: str) -> Path:
        """Move the whole model to where it stays, at once; its folder then. Done before, it stays so."""
        kept = self.root / name / self.job_id
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            self.model.rename(kept)
        return kept

    def write(self, path: Path, lines: list[str]) -> None:
        """Write a file of lines, all of it or nothing."""
        self.path.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        beside.replace(path)

    def remove(self) -> None:
        """Leave nothing of the work behind."""
        shutil.rmtree(self.path, ignore_errors=True)

    @classmethod
    def all_under(cls, root: Path) -> list[Self]:
        """Those of every job that is at work, or was left."""
        making = root / ".making"
        return [cls(root, path.name) for path in sorted(making.iterdir())] if making.is_dir() else []


def models_root(settings: Settings) -> Path:
    """The folder that the settings name; without one the folder `models` of the state folder."""
    return (Path(settings.models_folder) if settings.models_folder else default_state_dir() / "models").resolve()
