"""`python -m penstock_compress`: the commands of this package by themselves, as the worker starts them."""

import click

from penstock_compress.cli import quantize
from penstock_compress.evaluate_cli import evaluate
from penstock_compress.pruning_cli import prune
from penstock_compress.training_cli import distil, qat


@click.group()
def main() -> None:
    """Make smaller versions of a model, and see what they lost."""


for command in (quantize, evaluate, qat, prune, distil):
    main.add_command(command)

if __name__ == "__main__":
    main()
