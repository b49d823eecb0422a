"""Training: the curriculum's batches, the loss, and a run that is killed and goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from examples.invoices.checkpoint import Progress, load_checkpoint, save_checkpoint
from examples.invoices.dataset import BATCHES_PER_BLOCK, CURRICULUM, IGNORED, collate, draw_block
from examples.invoices.evaluate import MODEL_FOLDER
from examples.invoices.model import build_model
from examples.invoices.tokenizer import END
from examples.invoices.train import Plan, Rhythm, answer_loss, build_optimizers, train

ROOT = Path(__file__).parents[2]
TINY = Plan(steps=4 * BATCHES_PER_BLOCK, batch_size=2, warmup_steps=4, width=64, layers=1, level_up_loss=6.4)
EVERY_BLOCK = Rhythm(checkpoint=1, report=1, validate=1000, validation_invoices=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them; the comparison is to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))


def run_folder(tmp_path: Path, name: str, tokenizer: Tokenizer) -> Path:
    """A run's folder that has its tokenizer already: training one takes seconds and is tested elsewhere."""
    folder = tmp_path / name
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_killed_run_goes_on_exactly(tmp_path: Path, tokenizer: Tokenizer) -> None:
    undisturbed = train(TINY, run_folder(tmp_path, "undisturbed", tokenizer), EVERY_BLOCK)
    folder = run_folder(tmp_path, "killed", tokenizer)
    _train_until_killed(folder)
    survived = torch.load(folder / "checkpoint.pt", weights_only=True)["progress"]["step"]
    assert 0 < survived < TINY.steps
    resumed = train(TINY, folder, EVERY_BLOCK)
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def _train_until_killed(folder: Path) -> None:
    """Train in a process of its own and kill -9 it inside the block after its first checkpoint."""
    program = (
        "import os, signal, sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from examples.invoices import train as module\n"
        "from tests.examples.test_invoice_training import EVERY_BLOCK, TINY\n"
        "steps, step = iter(range(1, 10**6)), module.train_step\n"
        "def mortal(*arguments):\n"
        "    if next(steps) == 21: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(*arguments)\n"
        "module.train_step = mortal\n"
        "module.train(TINY, Path(sys.argv[1]), EVERY_BLOCK)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT, env=environment, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = build_model(tokenizer, width=64, layers=1)
    optimizers = build_optimizers(model, TINY)
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, model, optimizers, Progress(step=5))
    path.with_suffix(".partial").write_bytes(path.read_bytes()[:1000])  # what a kill in mid-write leaves behind
    assert load_checkpoint(path, model, optimizers).step == 5


def test_a_block_is_a_function_of_its_number(tokenizer: Tokenizer) -> None:
    first, again, other = (list(draw_block(tokenizer, 0, block, 4, batch_size=2)) for block in (3, 3, 4))
    assert len(first) == BATCHES_PER_BLOCK
    assert all(torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels) for a, b in zip(first, again, strict=True))
    assert any(a.ids.shape != b.ids.shape or not torch.equal(a.ids, b.ids) for a, b in zip(first, other, strict=True))


def test_only_the_answer_carries_loss(tokenizer: Tokenizer) -> None:
    batch = collate([([10, 11, 12], [20, 21, 1]), ([10], [20, 1])])
    assert batch.ids.tolist() == [[10, 11, 12, 20, 21], [10, 20, 0, 0, 0]]
    x = IGNORED
    assert batch.labels.tolist() == [[x, x, 20, 21, 1], [20, 1, x, x, x]]


@pytest.mark.parametrize("level", range(len(CURRICULUM)))
def test_every_answer_ends_with_the_end_token(tokenizer: Tokenizer, level: int) -> None:
    end = tokenizer.token_to_id(END)
    assert end is not None
    for batch in draw_block(tokenizer, 0, 0, level, batch_size=2):
        assert batch.labels.eq(end).sum(dim=1).eq(1).all()


def test_padding_changes_no_loss(tokenizer: Tokenizer) -> None:
    model = build_model(tokenizer, width=64, layers=1).eval()
    short, long = ([7, 8], [9, 1]), (list(range(40, 90)), [9, 30, 1])
    apart = answer_loss(model, collate([short])) * 2 + answer_loss(model, collate([long])) * 3
    together = answer_loss(model, collate([short, long])) * 5
    assert together.item() == pytest.approx(apart.item(), rel=1e-2)  # bf16 arithmetic


def test_the_learning_rate_warms_up_holds_and_falls_to_zero() -> None:
    plan = Plan(steps=1000, warmup_steps=10, decay_share=0.4, learning_rate=1.0)
    assert plan.rate_at(0) == pytest.approx(0.1)
    assert plan.rate_at(10) == plan.rate_at(600) == 1.0
    assert plan.rate_at(800) == pytest.approx(0.5)
    assert plan.rate_at(1000) == 0.0


def test_a_few_steps_lower_the_loss(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plan = Plan(steps=6 * BATCHES_PER_BLOCK, batch_size=4, warmup_steps=8, width=64, layers=1)
    folder = run_folder(tmp_path, "run", tokenizer)
    untrained = build_model(tokenizer, plan.width, plan.layers, plan.seed)
    trained = train(plan, folder, EVERY_BLOCK)
    batch = next(draw_block(tokenizer, 99, 0, 0, batch_size=16))
    assert answer_loss(trained, batch) < 0.6 * answer_loss(untrained, batch)
