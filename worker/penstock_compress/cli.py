"""`penstock quantize`."""

from pathlib import Path
from typing import Any

import click

from penstock_compress.errors import CalibrationUnusable
from penstock_compress.telling import Form, Teller, progress_option, telling

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
CHOSEN = "int4"


def _schemes(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if not asked or context.resilient_parsing:
        return
    from penstock_compress.recipe import MIXED, SCHEMES  # imports torch, which `--help` need not wait for

    meanings = {name: scheme.meaning for name, scheme in SCHEMES.items()}
    for name, meaning in (meanings | {MIXED: "each part in 8, 4 or 3 bits, or as it was; see --target-bytes"}).items():
        click.echo(f"{name:<14}{meaning}")
    context.exit()


@click.command()
@click.argument("source", type=click.Path(path_type=Path, file_okay=False))
@click.option("--out", required=True, type=FOLDER, help="Folder to write, which is not there yet.")
@click.option("--scheme", default=CHOSEN, show_default=True, help="Numbers that weights are rounded to; see --schemes.")
@click.option("--method", default="rtn", show_default=True, help="rtn, gptq, awq or smoothquant.")
@click.option("--group", default=128, show_default=True, help="Columns that share a scale.")
@click.option("--searched", is_flag=True, help="Shrink ranges where that loses less.")
@click.option("--act-order", is_flag=True, help="GPTQ: columns of large inputs first.")
@click.option("--damping", default=0.01, show_default=True, help="GPTQ: added to the Hessian's diagonal, as a share.")
@click.option(
    "--calibration", type=click.Path(path_type=Path, dir_okay=False), help="Text, or JSONL of text or messages."
)
@click.option("--samples", default=64, show_default=True, help="Sequences of calibration.")
@click.option("--length", default=512, show_default=True, help="Tokens of each.")
@click.option("--seed", default=0, show_default=True, help="Which sequences.")
@click.option("--target-bytes", help="Scheme mixed: the most it may take, as 900kB, 1.2GB, or 40% of the source.")
@click.option("--kv", type=click.Choice(["int8", "fp8"]), help="Cache keys and values in 8 bits.")
@click.option("--schemes", is_flag=True, is_eager=True, expose_value=False, callback=_schemes, help="List them.")
@progress_option
def quantize(source: Path, out: Path, calibration: Path | None, form: Form, **chosen: Any) -> None:
    """Write a smaller version of the model in SOURCE, as compressed-tensors.

    Killed runs go on where they were by the same command.
    """
    with telling(form) as teller:
        _quantize(source, out, calibration, chosen, teller)


def _quantize(source: Path, out: Path, calibration: Path | None, chosen: dict[str, Any], teller: Teller) -> None:
    from penstock_compress.calibration import read_tokens
    from penstock_compress.compressing import compress
    from penstock_compress.recipe import Recipe

    recipe = Recipe(**chosen)
    tokens = None
    if recipe.calibrated:
        if calibration is None:
            asked = f"--kv {recipe.kv}" if recipe.kv else f"--scheme {recipe.scheme} --method {recipe.method}"
            raise CalibrationUnusable(f"{asked} needs --calibration FILE")
        tokens = read_tokens(source, calibration, samples=recipe.samples, length=recipe.length, seed=recipe.seed)
    outcome = compress(source, out, recipe, tokens, teller.progress)
    share = outcome.bytes / outcome.source_bytes
    teller.done(f"{outcome.folder}: {outcome.bytes:,} bytes, {share:.1%} of the source's", outcome.as_dict())
