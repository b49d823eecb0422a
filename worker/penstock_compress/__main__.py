"""`python -m penstock_compress`: the commands of this package by themselves, as the worker starts them."""

import click

from penstock_compress.cli import quantize


@click.group()
def main() -> None:
    """Make smaller versions of a model."""


main.add_command(quantize)

if __name__ == "__main__":
    main()
