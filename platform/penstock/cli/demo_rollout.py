"""`penstock demo rollout`: a smaller version earns its place on real traffic, and a damaged one is stopped, twice."""

import io
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from penstock.cli.demo_damage import damage
from penstock.cli.demo_model import MODEL, assets, await_model
from penstock.cli.demo_story import Ending, Operator
from penstock.cli.demo_traffic import Question, Traffic, as_lines, questions
from penstock.client import Client
from penstock.embedded.errors import EmbeddedError
from penstock.embedded.platform import Platform
from penstock.registry.folder import describe
from penstock.registry.registration import register
from penstock.settings import MlflowSettings

STRUCK: Final = ("SEK", "PLN")
"""Currencies whose embeddings the damaged version has lost. No invoice of the held-out set is in one of them."""
HELD_OUT, CALIBRATING = 64, 64
FAILURE: Final = "logits_not_finite"
_WORK_SECONDS: Final = 300.0

_LATENCY: Final = {"quantile": 0.95, "tolerated_ratio": 4.0}
CAUTIOUS: Final[dict[str, Any]] = {
    "shadow": {"sampling": 0.3, "minimum_jobs": 30},
    "canary": {
        "steps": [
            {"share": 0.1, "error_margin": 0.3, "slow_margin": 0.4, "minimum_jobs": 15},
            {"share": 0.3, "error_margin": 0.15, "slow_margin": 0.25, "minimum_jobs": 40},
        ]
    },
    "ab": {"share": 0.5, "feedback_margin": 0.12, "minimum_jobs": 60},
    "latency": _LATENCY,
}
"""Wide margins, for a few hundred jobs have to do; the chances of a wrong verdict are the defaults."""
HASTY: Final[dict[str, Any]] = {
    "offline": None,
    "shadow": None,
    "canary": {"steps": [{"share": 0.25, "error_margin": 0.1, "slow_margin": 0.25, "minimum_jobs": 40}]},
    "latency": _LATENCY,
}


@dataclass(frozen=True)
class Stage:
    """What the acts of the demo share."""

    platform: Platform
    client: Client
    operator: Operator
    traffic: Traffic
    folder: Path
    alive: Callable[[], None]


@dataclass(frozen=True)
class Acts:
    """How the three rollouts ended, and what MLflow says in the end."""

    sound: Ending
    rejected: Ending
    stopped: Ending
    champion: str

    @property
    def as_wanted(self) -> bool:
        ends = (self.sound.status, self.rejected.status, self.stopped.status)
        return ends == ("promoted", "rejected", "rolled_back") and self.champion == self.sound.version


@click.command()
@click.option("--verbose", is_flag=True, help="Tell what each service does while it starts.")
def rollout(verbose: bool) -> None:
    """Let a smaller version of the model earn its place, and see a damaged one stopped.

    Everything is real: services, workers, traffic, the statistics and their chances to be wrong. Takes some minutes.
    """
    console = Console()
    with tempfile.TemporaryDirectory(prefix="penstock-demo-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)  # under root the database runs as another user, who must get through
        try:
            acts, traffic = _run(console, Path(folder), verbose)
        except EmbeddedError as error:
            raise click.ClickException(error.message) from error
    unharmed = _account(console, acts, traffic)
    console.out(_last_line(acts, traffic), highlight=False)
    sys.exit(0 if acts.as_wanted and unharmed else 1)


def _run(console: Console, folder: Path, verbose: bool) -> tuple[Acts, Traffic]:
    def report(service: str, line: str) -> None:
        if verbose:
            console.out(f"{service:>9}  {line}", highlight=False)

    platform = Platform(
        folder / "state", models={MODEL: assets() / "model"}, settings={"environment": "demo"}, report=report
    )
    console.print("Starting the platform")
    with platform:
        assert platform.bootstrap is not None  # the folder is new
        operator = Operator(platform.url, platform.bootstrap.api_key, console)
        with Client(platform.url, platform.bootstrap.api_key) as client:
            await_model(client)
            operator.say(f"{MODEL} version 1, in bf16, is the champion; customers send invoices, and judge the answers")
            asked = questions(assets() / "samples" / "held-out.jsonl")
            with Traffic(client, MODEL, asked[HELD_OUT * 2 :]) as traffic:
                stage = Stage(platform, client, operator, traffic, folder, _watch(traffic))
                acts = _play(stage, [each for each in asked if not each.holds(STRUCK)][:HELD_OUT])
    return acts, traffic


def _watch(traffic: Traffic) -> Callable[[], None]:
    """Raises when the platform does not take or finish jobs at all: nothing would ever be decided."""

    def alive() -> None:
        lost = [outcome.trouble for outcome in traffic.outcomes if outcome.trouble]
        if len(lost) >= 20:
            raise click.ClickException(f"{len(lost)} jobs were lost; of the last one: {lost[-1]}")

    return alive


def _play(stage: Stage, held_out: list[Question]) -> Acts:
    stage.traffic.await_sent(CALIBRATING, stage.alive)
    smaller, sound = _quantize(stage)
    file = stage.client.files.upload(io.BytesIO(as_lines(held_out)), filename="held-out.jsonl")
    gate = {"data": file.id, "minimum_tokens": 3000}
    stage.operator.say(f"the offline gate compares {len(held_out)} held-out invoices, none in {' or '.join(STRUCK)}")
    promoted = _roll(stage, sound, CAUTIOUS | {"offline": gate})
    damaged = _damage(stage, smaller)
    rejected = _roll(stage, damaged, CAUTIOUS | {"offline": gate})
    stage.operator.say(f"version {damaged} again, by a policy without offline gate and shadow")
    stopped = _roll(stage, damaged, HASTY)
    return Acts(promoted, rejected, stopped, _alias(stage, promoted.version))


def _quantize(stage: Stage) -> tuple[Path, str]:
    """Version 2, made by a job of the platform from what it has just served: its folder and number."""
    stage.operator.say(f"a job makes version 2: int4 by GPTQ, calibrated by {CALIBRATING} jobs that were just served")
    recipe = {"scheme": "int4", "method": "gptq", "group": 64, "samples": CALIBRATING // 2, "length": 256}
    job = stage.client.quantize(model=MODEL, recipe=recipe, evaluate=False, alias="challenger")
    done = stage.client.jobs.wait(job.id, timeout=_WORK_SECONDS)
    made = done.output
    if done.status != "succeeded" or made is None or made.version is None or made.source is None:
        raise click.ClickException(f"no smaller version was made: {done.error}")
    folder = Path(made.source)
    size = _size(folder) / _size(assets() / "model")
    stage.operator.say(f"version {made.version} takes {size:.0%} of version 1's bytes")
    return folder, made.version


def _damage(stage: Stage, sound: Path) -> str:
    """Version 3: the number that MLflow gives to the damaged one."""
    folder = damage(sound, stage.folder / "damaged", STRUCK)
    done = register(_mlflow(stage), describe(folder), MODEL, alias="challenger")
    stage.operator.say(
        f"version {done.version} is version 2, damaged: two low bits of some weights are lost, "
        f"and the embeddings of {' and '.join(STRUCK)} are no numbers"
    )
    return done.version


def _roll(stage: Stage, version: str, policy: dict[str, Any]) -> Ending:
    begun = stage.operator.start(MODEL, version, policy)
    return stage.operator.follow(begun, version, stage.alive)


def _alias(stage: Stage, wanted: str) -> str:
    """What MLflow's own client says the alias champion means; it may take a moment to be written there."""
    from mlflow import MlflowClient  # here, for it costs a second and 165 MB

    client = MlflowClient(stage.platform.services.tracking_uri)
    deadline = time.monotonic() + 30
    while True:
        found = str(client.get_model_version_by_alias(MODEL, "champion").version)
        if found == wanted or time.monotonic() > deadline:
            stage.operator.say(f"in MLflow the alias champion is version {found}")
            return found
        time.sleep(0.2)


def _mlflow(stage: Stage) -> MlflowSettings:
    return MlflowSettings(mlflow_tracking_uri=stage.platform.services.tracking_uri)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _account(console: Console, acts: Acts, traffic: Traffic) -> bool:
    """Tell what became of every job; whether none was lost, and none failed but by the damaged version itself."""
    outcomes, bad = traffic.outcomes, acts.stopped.version
    for version, served in sorted(Counter(each.version for each in outcomes if each.job).items()):
        right = sum(each.exact for each in outcomes if each.version == version)
        console.out(
            f"version {version} served {served} jobs, {right} answers were right to the letter", highlight=False
        )
    own = sum((each.failed_with, each.version) == (FAILURE, bad) for each in outcomes)
    lost = sum(each.job is None for each in outcomes)
    succeeded = sum(each.succeeded for each in outcomes)
    other = len(outcomes) - succeeded - own - lost
    console.out(
        f"{len(outcomes)} jobs: {succeeded} succeeded, {own} failed by version {bad}'s damage ({FAILURE}), "
        f"{other} failed otherwise, {lost} lost; {acts.stopped.rerouted} waited for version {bad} and were rerouted",
        highlight=False,
    )
    return other == lost == 0


def _last_line(acts: Acts, traffic: Traffic) -> str:
    sound, stopped = acts.sound, acts.stopped
    if not acts.as_wanted:
        ends = ", ".join(f"version {each.version} {each.status}" for each in (sound, acts.rejected, stopped))
        return f"rollout demo: went otherwise: {ends}; champion in MLflow: version {acts.champion}"
    served = sum(outcome.version == stopped.version for outcome in traffic.outcomes)
    return (
        f"rollout demo: promoted V{sound.version}, rejected V{acts.rejected.version} offline, "
        f"rolled back V{stopped.version} after {served} jobs in {stopped.seconds:.1f} s"
    )
