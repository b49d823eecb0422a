"""`penstock qat` and `penstock distil`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from penstock_compress.telling import Form, progress_option, telling

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--data", required=True, type=FILE, help="Text, or JSONL of text, prompt (with completion), or messages."
    ),
    click.option("--steps", default=500, show_default=True, help="Updates of the weights."),
    click.option("--batch", default=16, show_default=True, help="Sequences of each."),
    click.option("--rate", default=1e-4, show_default=True, help="Learning rate at its highest."),
    click.option("--warmup", default=0.05, show_default=True, help="Share of the steps over which it rises."),
    click.option("--weight-decay", default=0.0, show_default=True, help="Of matrices."),
    click.option("--temperature", default=1.0, show_default=True, help="Flattens the logits that are compared."),
    click.option("--prompts", is_flag=True, help="Learn the prompts' tokens too, not the answers' alone."),
    click.option("--length", default=1024, show_default=True, help="Tokens of a sequence, at most."),
    click.option("--sampled", default=1.0, show_default=True, help="Temperature at which the teacher answers."),
    click.option("--most", default=256, show_default=True, help="Tokens of an answer, at most."),
    click.option("--seed", default=0, show_default=True, help="Order of the sequences, and the teacher's answers."),
)


def _quiet() -> None:
    """No bars of `transformers` across ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def training_options(command: Command) -> Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("source", type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="Folder to write, which is not there yet.")
@click.option("--scheme", default="int4", show_default=True, help="As of `penstock quantize`, which lists them.")
@click.option("--group", default=128, show_default=True, help="Columns that share a scale.")
@click.option("--searched/--whole-range", default=True, show_default=True, help="Begin with shrunk ranges.")
@click.option(
    "--objective",
    type=click.Choice(["kl", "cross-entropy"]),
    default="kl",
    show_default=True,
    help="Be near the model as it was, or to the text.",
)
@training_options
@progress_option
def qat(
    source: Path, out: Path, scheme: str, group: int, searched: bool, data: Path, form: Form, **chosen: Any
) -> None:
    """Write a smaller version of the model in SOURCE that was trained as it will run: with rounded weights.

    The model itself, unrounded, teaches, and answers the lines of --data that bring a prompt alone. Killed runs go on
    where they were by the same command.
    """
    with telling(form) as teller:
        from penstock_compress import qat as training_rounded
        from penstock_compress.learning import line_of
        from penstock_compress.lessons import read_lessons
        from penstock_compress.recipe import Recipe
        from penstock_compress.training import Training

        _quiet()
        recipe, training = Recipe(scheme, group=group, searched=searched), Training(**chosen)
        lessons = read_lessons(source, data, training.length)
        outcome = training_rounded.qat(source, out, recipe, training, lessons, teller.progress)
        teller.done(line_of(outcome), outcome.as_dict())


@click.command()
@click.argument("student", type=FOLDER)
@click.option("--teacher", required=True, type=FOLDER, help="Folder of a model with the same tokenizer.")
@click.option("--out", required=True, type=FOLDER, help="Folder to write, which is not there yet.")
@training_options
@progress_option
def distil(student: Path, teacher: Path, out: Path, data: Path, form: Form, **chosen: Any) -> None:
    """Write the model in STUDENT, trained to say next what --teacher would.

    The teacher answers the lines of --data that bring a prompt alone. Killed runs go on where they were by the same
    command.
    """
    with telling(form) as teller:
        from penstock_compress import distilling
        from penstock_compress.learning import line_of
        from penstock_compress.lessons import read_lessons
        from penstock_compress.training import Training

        _quiet()
        training = Training(**chosen)
        distilling.check_same_tokens(student, teacher)
        lessons = read_lessons(teacher, data, training.length)
        outcome = distilling.distil(student, teacher, out, training, lessons, teller.progress)
        teller.done(line_of(outcome), outcome.as_dict())
