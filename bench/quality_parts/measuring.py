"""Each smaller version held against the model in bf16, on held-out invoices."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from penstock_compress.distances import Scored
from penstock_compress.evaluating import Reference
from penstock_compress.evaluation_data import EvaluationData
from penstock_compress.evaluation_models import file_bytes
from penstock_compress.figures import Estimate, Evaluation

from bench.quality_parts.arithmetic import expected_bytes
from bench.quality_parts.contestants import Contestant
from examples.invoices.evaluate import MODEL_FOLDER
from examples.invoices.held_out import write_held_out

CONTEXT = 1024


@dataclass(frozen=True)
class Row:
    """One smaller version. `kld` and `same_top` are over whole texts, invoices with their answers.

    `answer_kld_mean` and `ppl_ratio` are over the answers alone, which the model was trained on.
    """

    scheme: str
    method: str
    bytes: int
    bytes_ratio: float
    bytes_over_arithmetic: float
    held_bytes: int
    kld_mean: float
    kld_low: float | None
    kld_high: float | None
    kld_p99: float
    same_top: float
    answer_kld_mean: float
    ppl_ratio: float
    exact_match: float
    exact_low: float | None
    exact_high: float | None
    right_to_wrong: int
    wrong_to_right: int
    tokens_per_second: float
    speed_ratio: float
    seconds: float


@dataclass(frozen=True)
class Measured:
    """All rows, the model itself, and how far it lies from itself in other batches."""

    invoices: int
    texts: int
    positions: int
    exact_match: Estimate
    bytes: int
    held_bytes: int
    answer_perplexity: Estimate
    noise: dict[str, Any]
    rows: list[Row]


class Judges:
    """The model in bf16, twice: over whole texts, and with its answers to questions."""

    def __init__(self, invoices: int, texts: int, folder: Path) -> None:
        data = held_out(folder / "held-out.jsonl", invoices)
        shown = data.texts[:texts]
        self.whole = Reference(MODEL_FOLDER, EvaluationData([Scored(text.tokens, 1) for text in shown]))
        self.answers = Reference(MODEL_FOLDER, replace(data, texts=shown))

    def judge(self, made: Path, *, noise: bool) -> tuple[Evaluation, Evaluation]:
        """As it would serve, over whole texts and over answers; with `noise` the model in bf16 beside itself too."""
        return self.whole.evaluate(made, noise=noise, speed=False), self.answers.evaluate(made, noise=noise)


def measure(contestants: Sequence[Contestant], invoices: int, texts: int, folder: Path) -> Iterator[Row | Measured]:
    """A row as soon as it is there; all of it at the end. What is made lies in `folder`."""
    judges = Judges(invoices, texts, folder)
    rows: list[Row] = []
    first: tuple[Evaluation, Evaluation] | None = None
    for each in contestants:
        began = time.perf_counter()
        made = each.make(folder)
        whole, answers = judges.judge(made, noise=first is None)
        first = first or (whole, answers)
        rows.append(_row(each, made, whole, answers, round(time.perf_counter() - began, 1)))
        yield rows[-1]
    assert first is not None, "there is a contestant at least"
    yield _measured(*first, rows)


def _measured(whole: Evaluation, answers: Evaluation, rows: list[Row]) -> Measured:
    """What the first contestant's evaluation tells of the model itself stands before the rows."""
    against = answers.against
    assert against.exact_match is not None, "every invoice has an answer"
    assert whole.noise is not None, "it was asked for"
    assert answers.noise is not None, "it was asked for"
    return Measured(
        invoices=answers.answers,
        texts=whole.sequences,
        positions=whole.positions,
        exact_match=against.exact_match,
        bytes=against.bytes,
        held_bytes=against.held_bytes,
        answer_perplexity=against.perplexity,
        noise={"whole": asdict(whole.noise), "answers": asdict(answers.noise)},
        rows=rows,
    )


def held_out(file: Path, invoices: int) -> EvaluationData:
    """So many held-out invoices, each with the answer that is right."""
    write_held_out(file, invoices)
    return EvaluationData.read(file, MODEL_FOLDER, context=CONTEXT)


def _row(contestant: Contestant, made: Path, whole: Evaluation, found: Evaluation, seconds: float) -> Row:
    exact, flips, apart = found.candidate.exact_match, found.flips, whole.divergence
    assert exact is not None, "every invoice has an answer"
    assert flips is not None, "every invoice has an answer"
    speed, own_speed = found.candidate.tokens_per_second, found.against.tokens_per_second
    assert speed is not None, "it was asked for"
    assert own_speed is not None, "it was asked for"
    size = file_bytes(made)
    return Row(
        scheme=contestant.recipe.scheme,
        method=contestant.method,
        bytes=size,
        bytes_ratio=size / found.against.bytes,
        bytes_over_arithmetic=size / expected_bytes(MODEL_FOLDER, made),
        held_bytes=found.candidate.held_bytes,
        kld_mean=apart.mean.value,
        kld_low=apart.mean.low,
        kld_high=apart.mean.high,
        kld_p99=apart.p99,
        same_top=apart.same_top.value,
        answer_kld_mean=found.divergence.mean.value,
        ppl_ratio=found.divergence.perplexity_ratio.value,
        exact_match=exact.value,
        exact_low=exact.low,
        exact_high=exact.high,
        right_to_wrong=flips.right_to_wrong,
        wrong_to_right=flips.wrong_to_right,
        tokens_per_second=speed,
        speed_ratio=speed / own_speed,
        seconds=seconds,
    )
