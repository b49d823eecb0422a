"""Exact match on held-out invoices, through the Penstock engine and through `transformers`, and whether they agree.

`python -m examples.invoices.evaluate --held-out 500` ends with status 1 when an exact match is under 95%, or when
the engine and `transformers`, both in float32, differ on more than one answer in two hundred. The engine is
measured a second time in bfloat16, the type that the weights are stored and served in.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from penstock_engine import Engine, EngineConfig, Request, SamplingParams
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from examples.invoices.generator import FIELDS, Invoice, draw_invoice
from examples.invoices.layouts import Split
from examples.invoices.scoring import MAX_ANSWER_TOKENS, exact_share, greedy_answers, prompt_ids, score

MODEL_FOLDER = Path(__file__).parent / "model"
EVALUATION_SEED = 7_002
LOWEST_EXACT = 0.95
MOST_DIFFERENCES = 0.005

ENGINE_FP32, ENGINE_BF16, TRANSFORMERS = "penstock float32", "penstock bfloat16", "transformers float32"
OnAnswered = Callable[[int], object]


def held_out_invoices(count: int, seed: int = EVALUATION_SEED) -> list[Invoice]:
    """Return the first `count` held-out invoices of a stream."""
    return [draw_invoice(seed, index, Split.HELD_OUT) for index in range(count)]


def answers_by_transformers(folder: Path, invoices: Sequence[Invoice], on_answered: OnAnswered) -> list[str]:
    """Greedy answers of the stored weights, computed in float32 by `transformers`."""
    transformers_logging.disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return greedy_answers(model, tokenizer, invoices, on_batch=on_answered)


def answers_by_engine(
    folder: Path, invoices: Sequence[Invoice], config: EngineConfig, on_answered: OnAnswered
) -> list[str]:
    """Greedy answers by the engine, all invoices in flight at once. Raises RuntimeError if a request fails."""
    engine = Engine.from_folder(folder, config)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    sampling = SamplingParams(temperature=0, max_tokens=MAX_ANSWER_TOKENS)
    for index, invoice in enumerate(invoices):
        engine.submit(Request(str(index), prompt_ids(tokenizer, invoice), sampling))
    answers: list[list[int]] = [[] for _ in invoices]
    while engine.has_work:
        output = engine.step()
        if output.failed:
            raise RuntimeError(f"the engine failed a request: {output.failed[0]}")
        for delta in output.deltas:
            if delta.finish_reason != "stop":  # the token that stops is the end token
                answers[int(delta.request_id)].append(delta.token_id)
        on_answered(sum(delta.finish_reason is not None for delta in output.deltas))
    return [tokenizer.decode(ids) for ids in answers]


def evaluate(folder: Path, invoices: Sequence[Invoice], console: Console) -> dict[str, list[str]]:
    """Answer every invoice in every way; returns the answers by way, under a progress bar."""
    ways: dict[str, Callable[[OnAnswered], list[str]]] = {
        ENGINE_FP32: lambda told: answers_by_engine(folder, invoices, EngineConfig(dtype="float32"), told),
        ENGINE_BF16: lambda told: answers_by_engine(folder, invoices, EngineConfig(dtype="bfloat16"), told),
        TRANSFORMERS: lambda told: answers_by_transformers(folder, invoices, told),
    }
    columns = TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    answers: dict[str, list[str]] = {}
    with Progress(*columns, console=console) as progress:
        for name, answer in ways.items():
            task = progress.add_task(name, total=len(invoices))
            answers[name] = answer(partial(progress.advance, task))
    return answers


def report(invoices: Sequence[Invoice], answers: dict[str, list[str]], console: Console) -> bool:
    """Print exact match, fields and agreement; returns whether the model may ship."""
    table = Table("", "exact", *FIELDS, title=f"{len(invoices)} held-out invoices, greedy")
    scores = {name: score(invoices, given) for name, given in answers.items()}
    for name, s in scores.items():
        table.add_row(name, f"{s.exact:.1%}", *(f"{s.fields[field]:.1%}" for field in FIELDS))
    console.print(table)
    _report_kinds(invoices, answers[ENGINE_FP32], console)
    alike = _alike(answers[ENGINE_FP32], answers[TRANSFORMERS])
    console.print(f"identical answers, penstock and transformers in float32: {alike} of {len(invoices)}")
    alike_bf16 = _alike(answers[ENGINE_BF16], answers[TRANSFORMERS])
    console.print(
        f"identical answers, penstock in bfloat16 and transformers in float32: {alike_bf16} of {len(invoices)}"
    )
    agrees = len(invoices) - alike <= MOST_DIFFERENCES * len(invoices)
    exact = all(s.exact >= LOWEST_EXACT for s in scores.values())
    console.print(f"at least {LOWEST_EXACT:.0%} exact: {'yes' if exact else 'NO'}; agree: {'yes' if agrees else 'NO'}")
    return agrees and exact


def _report_kinds(invoices: Sequence[Invoice], answers: Sequence[str], console: Console) -> None:
    """Print the exact match apart for the two ways in which a layout can be held out."""
    for novel, name in ((True, "separator or bullet never trained on"), (False, "new combination of known parts")):
        rows = [(x, a) for x, a in zip(invoices, answers, strict=True) if x.layout.novel is novel]
        if rows:
            share = exact_share([x for x, _ in rows], [a for _, a in rows])
            console.print(f"{name}: {share:.1%} exact of {len(rows)}")


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


def show_mistakes(invoices: Sequence[Invoice], answers: Sequence[str], most: int, console: Console) -> None:
    """Print the first wrong answers beside the right ones."""
    wrong = [(invoice, a) for invoice, a in zip(invoices, answers, strict=True) if a != invoice.answer]
    for invoice, answer in wrong[:most]:
        console.print(f"\n{invoice.text}\nright:  {invoice.answer}\nanswer: {answer}", markup=False, soft_wrap=True)


def main() -> int:
    """Parse the command line, evaluate, print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", type=int, default=500, help="how many held-out invoices")
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--mistakes", type=int, default=0, help="print this many wrong answers")
    options = parser.parse_args()
    console = Console()
    invoices = held_out_invoices(options.held_out, options.seed)
    answers = evaluate(options.model, invoices, console)
    show_mistakes(invoices, answers[TRANSFORMERS], options.mistakes, console)
    return 0 if report(invoices, answers, console) else 1


if __name__ == "__main__":
    sys.exit(main())
