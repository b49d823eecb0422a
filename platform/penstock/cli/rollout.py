"""`penstock rollout`: the group. What needs numpy is imported when it is called, so that a bare client has the rest."""

from typing import Final

import click

from penstock.cli.lazy import Commands, Lazy

_MOVES: Final = "penstock.cli.rolling"
COMMANDS: Final = {
    "Rollouts": {
        "start": Lazy(f"{_MOVES}:start", "Let a version earn its place."),
        "list": Lazy(f"{_MOVES}:list_rollouts", "List rollouts, newest first."),
        "show": Lazy(f"{_MOVES}:show", "Show where one stands, and why."),
        "watch": Lazy(f"{_MOVES}:watch", "Follow one to its end."),
        "pause": Lazy(f"{_MOVES}:pause", "Send every new job to the champion for now."),
        "resume": Lazy(f"{_MOVES}:resume", "Go on where it was paused."),
        "abort": Lazy(f"{_MOVES}:abort", "End one without a verdict."),
        "rollback": Lazy(f"{_MOVES}:rollback", "Reject a version, or take it back."),
        "promote": Lazy(f"{_MOVES}:promote", "Let one pass its gate, whatever was proven."),
        "decisions": Lazy(f"{_MOVES}:decisions", "Show the ledger of moves."),
        "jobs": Lazy(f"{_MOVES}:jobs", "Show the jobs that decisions rest on."),
        "flips": Lazy(f"{_MOVES}:flips", "Show answers on which the versions differ most."),
    },
    "Policies": {
        "policy": Lazy("penstock.cli.rollout:policy", "Check, get and set policies."),
        "simulate": Lazy("penstock.cli.rehearsing:simulate", "Tell what a policy costs.", "platform"),
    },
}
_POLICIES: Final = {
    "Policies": {
        "check": Lazy("penstock.cli.rehearsing:check", "Check a policy, and print it in full.", "platform"),
        "get": Lazy(f"{_MOVES}:get_policy", "Print a model's policy."),
        "set": Lazy(f"{_MOVES}:set_policy", "Set a model's policy."),
    }
}


@click.group(cls=Commands, commands_by_section=COMMANDS)
def rollout() -> None:
    """Let a model version earn its place, gate by gate. All but `policy check` and `simulate` ask a server."""


@click.group(cls=Commands, commands_by_section=_POLICIES)
def policy() -> None:
    """Check, get and set the policies of rollouts."""
