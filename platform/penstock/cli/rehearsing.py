"""`penstock rollout policy check` and `simulate`: what a policy says and will cost, before a rollout starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import yaml
from rich.table import Table

from penstock.cli.failure import Failure
from penstock.cli.render import console_for
from penstock.rollouts.picture import Panel, draw
from penstock.rollouts.policy import Policy, read_policy
from penstock.rollouts.rehearsal import HARMLESS, Effect, Rehearsal, rehearse
from penstock.rollouts.states import Position
from penstock.rollouts.verdicts import Verdict

_POLICY: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_MOST: Final = {"errors": 1_000.0, "latency": 100.0, "kld": 1.0, "disagreement": 0.99}
_MEMBERS: Final = {"kld": "mean_kld"}


class _Part(click.ParamType[float]):
    """A part of a whole: `1%` or `0.01`."""

    name = "part"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            part = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            part = 0.0
        if not 0 < part < 1:
            self.fail(f"{text!r} is no part between 0 and 1, such as 1% or 0.01", param, ctx)
        return part


@click.command()
@click.argument("policy", type=_POLICY, required=False)
def check(policy: Path | None) -> None:
    """Check POLICY, a file of YAML or JSON, and print it in full with every default; without it the default policy."""
    read = _read(policy)
    click.echo(f"# version {read.version}")
    click.echo(yaml.safe_dump(read.model_dump(mode="json"), sort_keys=False).rstrip())


@click.command()
@click.argument("policy", type=_POLICY, required=False)
@click.option(
    "--effect",
    "effects",
    multiple=True,
    required=True,
    metavar="NAME=SIZE",
    help="errors=10x, latency=1.5x, kld=0.5 or disagreement=0.3; several at once.",
)
@click.option("--champion-error", type=_Part(), default="1%", show_default=True, help="How many jobs fail as it is.")
@click.option(
    "--jobs", type=click.IntRange(200, 1_000_000), default=20_000, show_default=True, help="Where a run ends."
)
@click.option(
    "--runs", type=click.IntRange(10, 100_000), default=400, show_default=True, help="More make it more exact."
)
@click.option("--seed", type=int, default=0, help="Other chance.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw it, as SVG.")
def simulate(
    policy: Path | None,
    effects: tuple[str, ...],
    champion_error: float,
    jobs: int,
    runs: int,
    seed: int,
    picture: Path | None,
) -> None:
    """Rehearse rollouts under POLICY (else the default policy): of a version without harm, and of one with --effect.

    Says how often each is rolled back, after how many jobs, and how many of those the version tried has served.
    """
    read, effect = _read(policy), _effect(effects)
    pair = [
        rehearse(read, each, error_rate=champion_error, limit=jobs, runs=runs, seed=seed) for each in (HARMLESS, effect)
    ]
    names = ("without harm", "with " + " ".join(effects))
    failing = f"{champion_error * 100:g}%"
    title = f"Policy {read.version}: {runs} runs of up to {jobs:,} jobs, of which the champion fails {failing}"
    console = console_for()
    console.print(title)
    console.print(_table(names, pair))
    for name, rehearsal in zip(names, pair, strict=True):
        console.print("", f"{name}:", *_summary(rehearsal), sep="\n")
    if picture is not None:
        panels = [Panel(name, _summary(rehearsal), rehearsal) for name, rehearsal in zip(names, pair, strict=True)]
        picture.write_text(draw(title, panels))


def _read(policy: Path | None) -> Policy:
    return Policy() if policy is None else read_policy(policy.read_text())


def _effect(effects: Sequence[str]) -> Effect:
    sizes: dict[str, float] = {}
    for text in effects:
        name, _, size = text.partition("=")
        try:
            value = float(size.removesuffix("x"))
        except ValueError:
            value = 0.0
        if name not in _MOST or not 0 < value <= _MOST[name]:
            known = ", ".join(f"{each} up to {most:g}" for each, most in _MOST.items())
            raise Failure(f"--effect {text}: give a name and a positive size, such as errors=10x; there are {known}", 2)
        sizes[_MEMBERS.get(name, name)] = value
    return Effect(**sizes)


def _table(names: Sequence[str], pair: Sequence[Rehearsal]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for name in names:
        for heading in (name, "passed", "rolled back", "jobs there", "90% within"):
            table.add_column(heading, justify="right")
    for stage in pair[0].stages:
        table.add_row(stage.title, *(cell for rehearsal in pair for cell in _cells(rehearsal, stage)))
    return table


def _cells(rehearsal: Rehearsal, stage: Position) -> tuple[str, ...]:
    """Runs that came there, how they left it, and how long it took in the median and at most, for nine in ten."""
    passages, lengths = rehearsal.passages(stage), sorted(rehearsal.lengths(stage))
    if not passages:
        return "0", "-", "-", "-", "-"
    parts = [sum(each.verdict is verdict for each in passages) for verdict in (Verdict.PROMOTE, Verdict.ROLLBACK)]
    nine_in_ten = lengths[-(-9 * len(lengths) // 10) - 1]
    return str(len(passages)), *map(str, parts), f"{lengths[len(lengths) // 2]:,}", f"{nine_in_ten:,}"


def _summary(rehearsal: Rehearsal) -> list[str]:
    words = {Verdict.PROMOTE: "pass", Verdict.ROLLBACK: "are rolled back", Verdict.HOLD: "are undecided"}
    rates = {verdict: rehearsal.rate(verdict) for verdict in words}
    return [
        f"{rate:.1%} {words[verdict]}" + _within(rehearsal, verdict, rate) for verdict, rate in rates.items() if rate
    ]


def _within(rehearsal: Rehearsal, verdict: Verdict, rate: float) -> str:
    """For half of those, and nine in ten: jobs since the rollout began, and how many the candidate had served."""
    if verdict is Verdict.HOLD:
        return ""
    (half, exposed), (most, most_exposed) = (rehearsal.ends(verdict, level * rate) for level in (0.5, 0.9))
    first = f", half within {half:,.0f} jobs ({exposed:,.0f} on the candidate)"
    return f"{first}, 90% within {most:,.0f} ({most_exposed:,.0f})"
