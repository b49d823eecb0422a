"""What the statistics of rollouts do where the truth is known, and what live rollouts do to jobs and to submits.

python -m bench.gates [--json PATH] [--runs N] [--part simulation|switches|submits|shadow|queue] [--quick]

Simulated from fixed seeds: figures do not depend on the machine. The peer, on the same jobs, is what is done elsewhere:
a z test that is looked at after every failure. Live: the platform's processes over real services, with engines that
compute nothing where the engine is not the question. Of one part alone the others' figures stay as they were in PATH.
Ends with status 1 when a target is missed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from penstock import __version__
from penstock.clock import utc_now
from penstock.rollouts.policy import Policy
from penstock.rollouts.rehearsal import HARMLESS, Effect, rehearse
from penstock.rollouts.simulation import (
    Alarms,
    Bools,
    World,
    false_alarms_and_power,
    first_at,
    log_mean,
    mean_path,
    sample_ratio_path,
    streams,
)
from penstock.rollouts.statistics import Floats, log_threshold
from penstock.rollouts.verdicts import Verdict

from bench.gates_parts.live import LIVE

ROOT = Path(__file__).parent.parent
ALPHA = 0.01
JOBS = 20_000
MEDIAN_TARGET = 550
STEPS = (0.01, 0.05, 0.25, 0.5)
HARMLESS_WORLDS = {
    "alike": World(),
    "rising shares": World(shares=STEPS),
    "rates that swing 25-fold": World(swing=5.0),
    "rising shares, swinging rates": World(shares=STEPS, swing=5.0),
    "champion fails 0.2%": World(error_rate=0.002),
    "champion fails 20%": World(error_rate=0.2),
    "200 unlike tenants, by job": World(tenants=200),
    "200 unlike tenants, sticky, each once": World(tenants=200, sticky=True, once=True),
    "1000 unlike tenants, sticky, each once, rising shares, swinging rates": World(
        tenants=1000, sticky=True, once=True, shares=STEPS, swing=3.0
    ),
}
WRONG_WORLDS = {
    "50 unlike tenants, sticky, every job counted": World(tenants=50, sticky=True),
    "200 unlike tenants, sticky, every job counted": World(tenants=200, sticky=True),
}
HARMFUL_WORLDS = {
    f"{ratio:g}x at {share:.0%}": World(ratio=ratio, shares=(share,))
    for share in (0.01, 0.1, 0.5)
    for ratio in (2.0, 3.0, 10.0, 30.0)
} | {
    "10x at 10%, 50 sticky tenants, each once": World(ratio=10.0, tenants=50, sticky=True, once=True),
    "10x at 10%, 1000 sticky tenants, each once": World(ratio=10.0, tenants=1000, sticky=True, once=True),
}


@dataclass(frozen=True)
class Rate:
    """Part of the runs with an alarm, what it is under with 95% confidence, and what it may be."""

    runs: int
    rate: float
    at_most: float
    target: float | None

    @property
    def met(self) -> bool:
        return self.target is None or self.rate <= self.target


@dataclass(frozen=True)
class Detection:
    """Jobs until harm was seen, and how many of them the candidate had; none where it was not within 20,000."""

    runs: int
    detected: float
    median_jobs: float | None
    median_exposed: float | None
    p90_jobs: float | None
    p90_exposed: float | None


def rate_of(alarms: Alarms, target: float | None) -> Rate:
    return Rate(len(alarms.jobs), round(alarms.rate, 5), round(alarms.bound, 5), target)


def detection_of(alarms: Alarms) -> Detection:
    half, most = alarms.quantile(0.5), alarms.quantile(0.9)
    known = [None if value == float("inf") else value for value in (*half, *most)]
    return Detection(len(alarms.jobs), round(alarms.rate, 4), *known)


def alarms_of(paths: list[Floats]) -> Alarms:
    """Those of tests that count every unit."""
    found = [first_at(path, log_threshold(ALPHA)) for path in paths]
    jobs = tuple(float("inf") if at is None else float(at + 1) for at in found)
    return Alarms(jobs, jobs)


def repeated_z_test(candidate: Bools, share: float) -> Floats:
    """The one-sided z value after each failure, once there are ten."""
    count = np.arange(1, len(candidate) + 1)
    z = (np.cumsum(candidate) - share * count) / np.sqrt(count * share * (1 - share))
    return np.asarray(np.where(count < 10, 0.0, z))


def peers(runs: int) -> Rate:
    """How often the z test finds harm where there is none, looked at as the e-process is."""
    critical = 2.326  # one-sided, alpha .01
    found = (
        first_at(repeated_z_test(each.candidate[each.failed], 0.1), critical) for each in streams(World(), runs, 1)
    )
    alarmed = tuple(float("inf") if at is None else float(at) for at in found)
    return rate_of(Alarms(alarmed, alarmed), None)


def means_at_their_margin(runs: int) -> dict[str, Rate]:
    """False proofs where the mean lies exactly at the bound, after each of 5,000 units."""
    rng = np.random.default_rng(5)

    def differences(worse: float) -> Floats:
        return (rng.random(5000) < 0.01 + worse).astype(float) - (rng.random(5000) < 0.01)

    drawn: dict[str, Callable[[], Floats]] = {
        "no worse than a margin of 2 points": (lambda: mean_path(differences(0.02), 0.02, above=False)),
        "worse than no difference": (lambda: mean_path(differences(0.0), 0.0, above=True)),
        "divergence below a bound": (lambda: mean_path(rng.beta(1, 9, 5000), 0.1, lower=0.0, above=False)),
        "feedback no worse by 5 points": (
            lambda: mean_path((rng.random(5000) < 0.65).astype(float) - (rng.random(5000) < 0.6), 0.05, above=False)
        ),
        "sample ratio of 10%": (lambda: sample_ratio_path(rng.random(JOBS) < 0.1, 0.1)[:, None]),
    }
    return {name: rate_of(alarms_of([log_mean(draw()) for _ in range(runs)]), ALPHA) for name, draw in drawn.items()}


def rehearsals(runs: int) -> dict[str, dict[str, object]]:
    """The default policy, from the shadow to the last step of the canary."""
    effects = {
        "without harm": HARMLESS,
        "errors 3x": Effect(errors=3.0),
        "errors 10x": Effect(errors=10.0),
        "latency 1.5x": Effect(latency=1.5),
        "divergence 0.5": Effect(mean_kld=0.5),
    }
    return {name: rehearsed(effect, runs) for name, effect in effects.items()}


def rehearsed(effect: Effect, runs: int) -> dict[str, object]:
    rehearsal = rehearse(Policy(), effect, error_rate=0.01, limit=JOBS, runs=runs, seed=1)
    rates = {verdict: rehearsal.rate(verdict) for verdict in Verdict}
    usual = max(rates, key=lambda verdict: rates[verdict])
    half, most = (rehearsal.ends(usual, level * rates[usual]) for level in (0.5, 0.9))
    told = {"jobs": half[0], "exposed": half[1], "p90_jobs": most[0], "p90_exposed": most[1]}
    return {"runs": runs} | {str(verdict): rate for verdict, rate in rates.items()} | {f"of {usual}": told}


def measure(runs: int) -> tuple[dict[str, object], bool]:
    """Everything, and whether the targets were met."""

    def simulated(world: World) -> Alarms:
        return false_alarms_and_power(world, alpha=ALPHA, runs=runs, seed=1)

    false = {name: rate_of(simulated(world), ALPHA) for name, world in HARMLESS_WORLDS.items()}
    false |= means_at_their_margin(max(runs // 4, 1))
    wrong = {name: rate_of(simulated(world), None) for name, world in WRONG_WORLDS.items()}
    power = {name: detection_of(simulated(world)) for name, world in HARMFUL_WORLDS.items()}
    median = power["10x at 10%"].median_jobs
    policy = rehearsals(max(runs // 5, 1))
    kept = float(str(policy["without harm"]["rollback"])) <= Policy().alphas.rollback
    met = kept and all(rate.met for rate in false.values()) and median is not None and median <= MEDIAN_TARGET
    measured: dict[str, object] = {
        "alpha": ALPHA,
        "jobs": JOBS,
        "targets": {"false_alarms": ALPHA, "median_jobs_10x_at_10%": MEDIAN_TARGET, "met": met},
        "false_alarms": {name: asdict(rate) for name, rate in false.items()},
        "false_alarms_of_what_must_not_be_done": {name: asdict(rate) for name, rate in wrong.items()}
        | {"a z test after every failure": asdict(peers(runs))},
        "detection": {name: asdict(found) for name, found in power.items()},
        "default_policy": {"version": Policy().version, "runs": policy},
    }
    return measured, met


def simulated(runs: int) -> tuple[dict[str, object], bool]:
    """The part that needs no machine, and whether its targets were met."""
    began = time.process_time()
    measured, met = measure(runs)
    return measured | {"cpu_seconds": round(time.process_time() - began, 1)}, met


def recorded(path: Path, chosen: str | None, runs: int, *, quick: bool) -> tuple[dict[str, object], bool]:
    """What is to be written, and whether the targets of what was measured were met."""
    known: dict[str, object] = json.loads(path.read_text()) if chosen and path.is_file() else {}
    verdicts = []
    if chosen in (None, "simulation"):
        found, met = simulated(runs)
        known |= circumstances() | found
        verdicts.append(met)
    for name, measured in LIVE.items():
        if chosen in (None, name):
            live = measured(quick=quick) | {"circumstances": circumstances()}
            known[name] = live
            verdicts.append(bool(live["met"]))
    return known, all(verdicts)


def circumstances() -> dict[str, object]:
    """When, where and of which code."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "measured_at": utc_now().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "penstock": __version__,
        "commit": commit.stdout.strip(),
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "gates.json")
    parser.add_argument("--runs", type=int, default=4000, help="of each world")
    parser.add_argument("--part", choices=["simulation", *LIVE], help="one alone")
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it works")
    arguments = parser.parse_args()
    runs = min(arguments.runs, 100) if arguments.quick else arguments.runs
    record, met = recorded(arguments.json, arguments.part, runs, quick=arguments.quick)
    print(json.dumps(record, indent=2))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
