"""How a command ends when it cannot do what it was asked: one line on standard error, and an exit status."""

from typing import Final

import click

from penstock.errors import PenstockError, SettingsError

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


class Failure(click.ClickException):
    """Ends the command with `Error: message`."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance


def failure_of(error: PenstockError) -> Failure:
    """The failure that tells of an error: its field, unless the message names it already, and what would be right."""
    message = error.message
    if error.field and error.field not in message:
        message = f"{error.field}: {message}"
    return Failure(message, EXIT_USAGE if isinstance(error, SettingsError) else EXIT_FAILURE)
