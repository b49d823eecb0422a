"""`penstock evaluate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from penstock_compress.telling import Form, Teller, progress_option, telling

if TYPE_CHECKING:
    from penstock_compress.evaluation_data import Match
    from penstock_compress.figures import Divergence, Estimate, Evaluation, ModelFigures

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("candidate", type=_FOLDER)
@click.option("--against", type=_FOLDER, required=True, help="Folder of the model to hold it against.")
@click.option("--data", type=_FILE, required=True, help="JSONL of texts, prompts or messages, with answers or without.")
@click.option("--sequences", type=click.IntRange(min=1), help="Take the first so many lines.")
@click.option("--match", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to compare.")
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda.")
@click.option("--noise/--no-noise", default=True, show_default=True, help="Also hold the other against itself.")
@click.option("--json", "told", type=_FILE, help="Write the figures there.")
@click.option("--picture", type=_FILE, help="Draw the divergence along the text there, as SVG.")
@progress_option
def evaluate(
    candidate: Path,
    against: Path,
    data: Path,
    sequences: int | None,
    match: "Match",
    device: str,
    noise: bool,
    told: Path | None,
    picture: Path | None,
    form: Form,
) -> None:
    """Hold the model in CANDIDATE against another: divergence, perplexity, right answers, speed and size.

    Both run as they would serve. With --noise the other is held against itself too, run in other batches.
    """
    with telling(form) as teller:
        found = _evaluate(candidate, against, data, sequences, match, device, noise, teller)
        figures = found.as_dict()
        if told is not None:
            told.write_text(json.dumps(figures, indent=2) + "\n")
        if picture is not None:
            _draw(found, picture)
        teller.done(summary(found), {"figures": figures})


def _evaluate(
    candidate: Path,
    against: Path,
    file: Path,
    sequences: int | None,
    match: "Match",
    device: str,
    noise: bool,
    teller: Teller,
) -> "Evaluation":
    from penstock_compress.evaluating import evaluate as evaluated  # imports torch, which `--help` need not wait for
    from penstock_compress.evaluation_data import EvaluationData
    from penstock_compress.evaluation_models import read_config

    context = min(read_config(candidate, "candidate").max_positions, read_config(against, "against").max_positions)
    data = EvaluationData.read(file, against, context=context, sequences=sequences, match=match)
    return evaluated(candidate, against, data, device=device, noise=noise, progress=teller.progress)


def _draw(found: "Evaluation", file: Path) -> None:
    from penstock_compress.pictures import draw_evaluation

    names = [Path(each.path).resolve().name for each in (found.candidate, found.against)]
    file.write_text(draw_evaluation(found, *names), encoding="utf-8")


def summary(found: "Evaluation") -> str:
    """The figures for a terminal, a line each."""
    candidate, against, apart = found.candidate, found.against, found.divergence
    lines = [
        f"{found.sequences:,} sequences, {found.positions:,} positions, {found.answers:,} answers",
        f"{'':24}{'candidate':>14}{'against':>14}",
        f"{'bytes':24}{candidate.bytes:>14,}{against.bytes:>14,}",
        f"{'bytes of weights held':24}{candidate.held_bytes:>14,}{against.held_bytes:>14,}",
        f"{'bytes of KV a token':24}{candidate.kv_token_bytes:>14,}{against.kv_token_bytes:>14,}",
        f"{'tokens a second':24}{_speed(candidate):>14}{_speed(against):>14}",
        f"{'perplexity':24}{candidate.perplexity.value:>14.5f}{against.perplexity.value:>14.5f}",
    ]
    if candidate.exact_match is not None and against.exact_match is not None:
        lines.append(f"{'right answers':24}{candidate.exact_match.value:>14.2%}{against.exact_match.value:>14.2%}")
    lines += ["", f"{'':24}{'candidate':>14}{'95%':>24}{'noise':>14}"]
    itself = None if found.noise is None else found.noise.divergence
    lines.append(_row("mean KL, nats", apart.mean, None if itself is None else itself.mean, ".6f"))
    lines += [f"{'KL, ' + name:24}{value:>14.6f}" for name, value in _tails(apart)]
    lines.append(_row("same first choice", apart.same_top, None if itself is None else itself.same_top, ".3%"))
    ratio = None if itself is None else itself.perplexity_ratio
    lines.append(_row("ratio of perplexities", apart.perplexity_ratio, ratio, ".5f"))
    if found.flips is not None:
        floor = None if found.noise is None or found.noise.flips is None else found.noise.flips.share
        lines.append(_row("flipped answers", found.flips.share, floor, ".2%"))
        lines.append(f"{'':24}{found.flips.right_to_wrong} right to wrong, {found.flips.wrong_to_right} wrong to right")
    return "\n".join(lines)


def _speed(model: "ModelFigures") -> str:
    return "-" if model.tokens_per_second is None else f"{model.tokens_per_second:,.0f}"


def _tails(apart: "Divergence") -> list[tuple[str, float]]:
    return [("median", apart.median), ("99th percentile", apart.p99), ("largest", apart.max)]


def _row(name: str, found: "Estimate", noise: "Estimate | None", form: str) -> str:
    """A figure, the interval that holds it with 95%, and what is mere noise."""
    held = "" if found.low is None or found.high is None else f"{found.low:{form}} to {found.high:{form}}"
    return f"{name:24}{found.value:>14{form}}{held:>24}{'' if noise is None else format(noise.value, form):>14}"
