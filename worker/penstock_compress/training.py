"""Training a student beside its teacher: step by step the same for the same seed, also when it was killed between.

The loss is how far the student's next token is from the teacher's, over the whole vocabulary (Hinton, Vinyals, Dean,
"Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531), or how unlikely it finds the token that stands
in the lesson. Only the tokens of a lesson that count get logits.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from penstock_compress.errors import CalibrationUnusable, InvalidRecipe, TargetUnusable
from penstock_compress.lessons import Answering, Lesson
from penstock_compress.telling import Report

Objective = Literal["kl", "cross-entropy"]
IGNORED: Final = -100  # the target of a position that carries no loss
LIKE_LENGTHS: Final = 16  # batches that are sorted by length together, so that little of a batch is padding
KEPT_EVERY: Final = 50  # steps; what is kept changes nothing that is computed
STATE: Final = "training.pt"


@dataclass(frozen=True, slots=True)
class Training:
    """All that decides what a run computes, beside the models and the lessons.

    `rate` is AdamW's learning rate at its highest: it rises over the first `warmup` share of `steps` and falls to zero
    by a cosine. `temperature` flattens both models' logits before they are compared. Lessons have at most `length`
    tokens; the teacher answers those without an answer at temperature `sampled`, in `most` tokens. With `prompts` all
    tokens of a lesson count, and not its answer's alone.
    """

    steps: int = 500
    batch: int = 16
    rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    objective: Objective = "kl"
    temperature: float = 1.0
    prompts: bool = False
    length: int = 1024
    sampled: float = 1.0
    most: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "most"):
            _require(getattr(self, name) >= 1, name, f"must be at least 1, not {getattr(self, name)}")
        for name in ("rate", "temperature"):
            _require(0 < getattr(self, name) < math.inf, name, f"must be above 0, not {getattr(self, name)}")
        for name in ("weight_decay", "sampled"):
            _require(0 <= getattr(self, name) < math.inf, name, f"must be at least 0, not {getattr(self, name)}")
        _require(0 <= self.warmup < 1, "warmup", f"must be a share of the steps, 0 to 1, not {self.warmup}")
        _require(self.length >= 2, "length", f"must be at least 2, not {self.length}")
        named = self.objective in ("kl", "cross-entropy")
        _require(named, "objective", f"must be kl or cross-entropy, not {self.objective!r}")

    @property
    def answering(self) -> Answering:
        return Answering(self.sampled, self.most, self.seed)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _require(holds: bool, field: str, remedy: str) -> None:
    if not holds:
        raise InvalidRecipe(field, remedy)


@dataclass(frozen=True)
class Batch:
    """`ids` int64 [batch, length], padded on the right, and in its shape the `targets`: each next token, or IGNORED.

    Padding needs no mask: attention is causal, so nothing that counts ever sees what stands behind it.
    """

    ids: Tensor
    targets: Tensor

    @classmethod
    def of(cls, lessons: Sequence[Lesson]) -> "Batch":
        length = max(len(lesson.ids) for lesson in lessons) - 1
        ids = torch.zeros(len(lessons), length, dtype=torch.int64)
        targets = torch.full_like(ids, IGNORED)
        for row, lesson in enumerate(lessons):
            tokens = torch.tensor(lesson.ids)
            ids[row, : len(tokens) - 1] = tokens[:-1]
            targets[row, lesson.start - 1 : len(tokens) - 1] = tokens[lesson.start :]
        return cls(ids, targets)


class Batches:
    """Every lesson once in each epoch, in an order of its own; which batch a step has depends on nothing but `seed`."""

    def __init__(self, lessons: Sequence[Lesson], size: int, seed: int) -> None:
        if len(lessons) < size:
            raise CalibrationUnusable(
                f"there are {len(lessons)} lessons for a batch of {size}: give more, or a smaller batch"
            )
        self._lessons, self._size, self._seed = lessons, size, seed
        self._epoch, self._order = -1, [[0]]

    def at(self, step: int) -> Batch:
        epoch, index = divmod(step, len(self._lessons) // self._size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._drawn(epoch)
        return Batch.of([self._lessons[each] for each in self._order[index]])

    def _drawn(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(len(self._lessons), generator=generator).tolist()
        run = self._size * LIKE_LENGTHS
        alike = [
            each
            for begin in range(0, len(order), run)
            for each in sorted(order[begin : begin + run], key=lambda index: len(self._lessons[index].ids))
        ]
        batches = [alike[begin : begin + self._size] for begin in range(0, len(alike), self._size)]
        whole = [batch for batch in batches if len(batch) == self._size]
        return [whole[index] for index in torch.randperm(len(whole), generator=generator).tolist()]


class Trainer:
    """A student on its way through its lessons; what it has learned is kept in `file` now and then.

    Parameters of `student` that require gradients are trained, in float32. `teacher` is None where the objective needs
    none. No dropout: both models run as they are served.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, lessons: Sequence[Lesson], training: Training, file: Path
    ) -> None:
        self._student, self._teacher, self._training = student.eval(), teacher, training
        self._batches = Batches(lessons, training.batch, training.seed)
        self._file = file
        self._trained = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
        self._optimizer = AdamW(_groups(self._trained, training.weight_decay), lr=training.rate, betas=(0.9, 0.98))

    def run(self, report: Report) -> None:
        """Train to the last step, from where a killed run had come to."""
        for step in range(self._resume(), self._training.steps):
            loss = self._step(step)
            if (step + 1) % KEPT_EVERY == 0:
                self._keep(step + 1)
            report(step + 1, self._training.steps, f"loss {loss:.4f}")
        self._keep(self._training.steps)

    def _step(self, step: int) -> float:
        """One update; the loss before it."""
        loss = loss_of(self._student, self._teacher, self._batches.at(step), self._training)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        nn.utils.clip_grad_norm_(self._trained.values(), 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = self._training.rate_at(step)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()

    def _keep(self, step: int) -> None:
        beside = self._file.with_suffix(".new")
        weights = {name: weight.detach() for name, weight in self._trained.items()}
        torch.save({"step": step, "weights": weights, "optimizer": self._optimizer.state_dict()}, beside)
        beside.replace(self._file)

    def _resume(self) -> int:
        if not self._file.exists():
            return 0
        try:
            kept = torch.load(self._file, weights_only=True)
            self._optimizer.load_state_dict(kept["optimizer"])
            with torch.no_grad():
                for name, weight in self._trained.items():
                    weight.copy_(kept["weights"][name])
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise TargetUnusable(self._file, f"cannot be read ({error}); remove its folder to begin anew") from None
        return int(kept["step"])


def loss_of(student: nn.Module, teacher: nn.Module | None, batch: Batch, training: Training) -> Tensor:
    """The mean loss of the batch's tokens that count, in nats."""
    counts = batch.targets != IGNORED
    columns = counts.any(0).nonzero().squeeze(-1)
    own = _logits(student, batch, columns)[counts[:, columns]]
    if training.objective == "cross-entropy" or teacher is None:
        return functional.cross_entropy(own, batch.targets[counts])
    with torch.no_grad():
        taught = _logits(teacher, batch, columns)[counts[:, columns]]
    heat = training.temperature
    wanted, said = (logits.div(heat).log_softmax(-1) for logits in (taught, own))
    return functional.kl_div(said, wanted, reduction="batchmean", log_target=True) * heat**2


def _logits(model: nn.Module, batch: Batch, columns: Tensor) -> Tensor:
    """Float32 [batch, columns, vocabulary]."""
    logits: Tensor = model(input_ids=batch.ids, use_cache=False, logits_to_keep=columns).logits
    return logits.float()


def _groups(trained: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases and scales do not."""
    matrices = [weight for name, weight in trained.items() if weight.dim() == 2 and name.endswith("weight")]
    others = [weight for name, weight in trained.items() if weight.dim() != 2 or not name.endswith("weight")]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def digest_of(*parts: object) -> str:
    """SHA-256 of the parts as JSON, hexadecimal: what says that a run is the same."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
