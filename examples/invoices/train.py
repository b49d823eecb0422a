"""Train the invoice model from nothing: `python -m examples.invoices.train --steps 6000`.

Killing it at any moment is safe: the next call with the same run folder goes on from the last checkpoint and
computes exactly what an undisturbed run would have computed.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW, Muon, Optimizer
from transformers import LlamaForCausalLM

from examples.invoices.checkpoint import Progress, load_checkpoint, save_checkpoint
from examples.invoices.dataset import CURRICULUM, IGNORED, Batch, draw_block
from examples.invoices.generator import draw_invoice
from examples.invoices.layouts import Split
from examples.invoices.model import build_model, export_model
from examples.invoices.scoring import exact_share, greedy_answers
from examples.invoices.tokenizer import train_tokenizer

EXAMPLES = Path(__file__).parent
VALIDATION_SEED = 7_001
"""Held-out invoices watched while training; evaluate.py reports on another seed."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a run computes."""

    steps: int = 6_000
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    decay_share: float = 0.4
    """The last share of the steps in which the learning rate falls to zero."""
    weight_decay: float = 0.01
    level_up_loss: float = 0.12
    """Mean loss, in nats per answer token, at which the curriculum shows one field more."""
    width: int = 128
    layers: int = 4
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, constant, linear decay to zero."""
        warmup = (step + 1) / self.warmup_steps
        decay = (self.steps - step) / max(1, round(self.steps * self.decay_share))
        return self.learning_rate * max(0.0, min(1.0, warmup, decay))


@dataclass(frozen=True)
class Rhythm:
    """How often a run writes and reports, in blocks; it changes nothing that is computed."""

    checkpoint: int = 8
    report: int = 2
    validate: int = 32
    validation_invoices: int = 64


def build_optimizers(model: LlamaForCausalLM, plan: Plan) -> list[Optimizer]:
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for matrices, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = Muon(matrices, lr=plan.learning_rate, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, AdamW(others, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay)]


def answer_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats over the answers' tokens; only they get logits."""
    wanted = batch.labels != IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[wanted])
    return functional.cross_entropy(logits.float(), batch.labels[wanted])


def train_step(model: LlamaForCausalLM, optimizers: list[Optimizer], batch: Batch, rate: float) -> float:
    """One update at this learning rate; returns the loss before it."""
    loss = answer_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def train(plan: Plan, folder: Path, rhythm: Rhythm = Rhythm(), stop_at: int | None = None) -> LlamaForCausalLM:
    """Train to the plan's end (or until `stop_at` steps), going on from the folder's checkpoint if any."""
    tokenizer = _tokenizer_of(folder)
    model = build_model(tokenizer, plan.width, plan.layers, plan.seed)
    optimizers = build_optimizers(model, plan)
    path = folder / "checkpoint.pt"
    progress = load_checkpoint(path, model, optimizers)
    print(f"{model.num_parameters():,} parameters, from step {progress.step} of {plan.steps}", flush=True)
    while progress.step < min(plan.steps, stop_at or plan.steps):
        _train_block(plan, tokenizer, model, optimizers, progress)
        done = progress.step >= plan.steps
        if progress.block % rhythm.report == 0 or done:
            _report(plan, progress)
        if progress.block % rhythm.checkpoint == 0 or done:
            save_checkpoint(path, model, optimizers, progress)
        if progress.block % rhythm.validate == 0 or done:
            _validate(model, tokenizer, folder, progress, rhythm.validation_invoices)
    return model


def _tokenizer_of(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        train_tokenizer().save(str(path))
    return Tokenizer.from_file(str(path))


def _train_block(
    plan: Plan, tokenizer: Tokenizer, model: LlamaForCausalLM, optimizers: list[Optimizer], progress: Progress
) -> None:
    """Train on one block, then move up a level if the loss allows: levels change between blocks alone."""
    started = time.monotonic()
    model.train()
    for batch in draw_block(tokenizer, plan.seed, progress.block, progress.level, plan.batch_size):
        loss = train_step(model, optimizers, batch, plan.rate_at(progress.step))
        progress.loss = loss if progress.loss == float("inf") else 0.97 * progress.loss + 0.03 * loss
        progress.step += 1
    progress.block += 1
    progress.seconds += time.monotonic() - started
    if progress.loss < plan.level_up_loss and progress.level < len(CURRICULUM) - 1:
        progress.level += 1
        progress.loss = float("inf")


def _report(plan: Plan, progress: Progress) -> None:
    print(
        f"step {progress.step:6d}/{plan.steps}  level {progress.level + 1}/{len(CURRICULUM)}"
        f"  loss {progress.loss:.4f}  rate {plan.rate_at(progress.step):.1e}"
        f"  {progress.seconds / 60:6.1f} min",
        flush=True,
    )


def _validate(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path, progress: Progress, count: int) -> None:
    """Print the exact match on held-out invoices and write the model folder as it stands."""
    model.eval()
    invoices = [draw_invoice(VALIDATION_SEED, i, Split.HELD_OUT) for i in range(count)]
    share = exact_share(invoices, greedy_answers(model, tokenizer, invoices))
    print(f"step {progress.step:6d}  held-out exact match {share:.1%} of {count}", flush=True)
    export_model(model, tokenizer, folder / "model")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--batch-size", type=int, default=Plan.batch_size)
    parser.add_argument("--learning-rate", type=float, default=Plan.learning_rate)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run", type=Path, default=EXAMPLES / "runs" / "default", help="the run's folder")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(Plan(options.steps, options.batch_size, options.learning_rate), options.run)


if __name__ == "__main__":
    main()
