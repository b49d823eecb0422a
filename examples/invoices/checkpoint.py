"""A training run's state on disk: written whole or not at all, so that a kill costs only the steps since."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer


@dataclass
class Progress:
    """Where a run stands. The training loop alone writes it."""

    step: int = 0
    block: int = 0
    level: int = 0
    loss: float = float("inf")
    """Exponential moving average of the loss in the current level, nats per answer token."""
    seconds: float = 0.0
    """Wall-clock time spent training, over all restarts."""


def save_checkpoint(path: Path, model: nn.Module, optimizers: list[Optimizer], progress: Progress) -> None:
    """Replace the checkpoint at `path` atomically; the rename is durable before this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": asdict(progress),
    }
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path, model: nn.Module, optimizers: list[Optimizer]) -> Progress:
    """Restore model and optimizers in place and return the progress; without a checkpoint, a fresh one."""
    if not path.exists():
        return Progress()
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return Progress(**state["progress"])
