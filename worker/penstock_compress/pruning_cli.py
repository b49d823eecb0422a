"""`penstock prune`."""

from pathlib import Path

import click

from penstock_compress.telling import Form, progress_option, telling

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("source", type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="Folder to write, which is not there yet.")
@click.option("--keep-ffn", default=1.0, show_default=True, help="Share of the feed-forward channels.")
@click.option("--keep-heads", default=1.0, show_default=True, help="Share of the heads, by groups that share K and V.")
@click.option("--keep-layers", type=int, help="How many blocks; all by default.")
@click.option("--calibration", required=True, type=FILE, help="Text, or JSONL of text or messages.")
@click.option("--samples", default=64, show_default=True, help="Sequences of calibration.")
@click.option("--length", default=512, show_default=True, help="Tokens of each.")
@click.option("--seed", default=0, show_default=True, help="Which sequences.")
@progress_option
def prune(
    source: Path,
    out: Path,
    keep_ffn: float,
    keep_heads: float,
    keep_layers: int | None,
    calibration: Path,
    samples: int,
    length: int,
    seed: int,
    form: Form,
) -> None:
    """Write the model in SOURCE without what matters least to the calibration: an ordinary checkpoint.

    `penstock distil` trains what is left. Killed runs go on where they were by the same command.
    """
    with telling(form) as teller:
        from penstock_compress import pruning
        from penstock_compress.calibration import read_tokens
        from penstock_compress.learning import line_of

        cut = pruning.Cut(keep_ffn, keep_heads, keep_layers)
        tokens = read_tokens(source, calibration, samples=samples, length=length, seed=seed)
        outcome = pruning.prune(source, out, cut, tokens, teller.progress)
        teller.done(line_of(outcome), outcome.as_dict())
