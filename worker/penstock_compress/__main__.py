"""`python -m penstock_compress`: the commands of this package by themselves, as the worker starts them."""

import click

from penstock_compress.cli import quantize
from penstock_compress.evaluate_cli import evaluate


@click.group()
def main() -> None:
    """Make smaller versions of a model, and see what they lost."""


main.add_command(quantize)
main.add_command(evaluate)

if __name__ == "__main__":
    main()
