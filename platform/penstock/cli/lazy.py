"""A click group that knows its commands' names and one-line helps, and imports a command when it is called.

Packages add commands through the entry-point group `penstock.commands`; those that need an engine come from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

import click

from penstock.cli.failure import Failure, failure_of
from penstock.errors import PenstockError

ENTRY_POINT_GROUP: Final = "penstock.commands"
PLUGIN_SECTION: Final = "Engine"


@dataclass(frozen=True, slots=True)
class Lazy:
    """Where a command is (`module:attribute`), its one-line help, and the extras that it needs."""

    target: str
    short_help: str
    extras: str = ""

    def load(self, name: str) -> click.Command:
        """The command. Raises `Failure` naming the extras when something that it imports is not installed."""
        module, _, attribute = self.target.partition(":")
        try:
            command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            needed = f"pip install 'penstock[{self.extras}]'" if self.extras else "pip install penstock"
            raise Failure(f"`penstock {name}` needs {error.name}, which is not installed: {needed}") from error
        assert isinstance(command, click.Command)
        return command


class Commands(click.Group):
    """The group. Errors that Penstock raises on purpose end it with one line, never with a traceback."""

    def __init__(
        self,
        *args: Any,
        commands_by_section: Mapping[str, Mapping[str, Lazy]],
        plugin_help: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        plugins = {} if plugin_help is None else _plugins(plugin_help)
        self.sections = dict(commands_by_section) | ({PLUGIN_SECTION: plugins} if plugins else {})

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Every name, section by section."""
        return [name for section in self.sections.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """The command of that name, imported now."""
        for section in self.sections.values():
            if cmd_name in section:
                return section[cmd_name].load(cmd_name)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - the same
        """The sections of the help page, from the helps that are known without an import."""
        for title, section in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, lazy.short_help) for name, lazy in section.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except PenstockError as error:
            raise failure_of(error) from error


def _plugins(known_help: Mapping[str, str]) -> dict[str, Lazy]:
    found = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
    return {
        point.name: Lazy(point.value, known_help.get(point.name, f"From {point.value}."), point.name) for point in found
    }
