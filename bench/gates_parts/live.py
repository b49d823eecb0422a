"""The live parts, and what each is to reach."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.gates_parts import great_queue, shadows, submits, switches
from bench.platform_parts.house import DEMO_MODEL, House, add_version, open_house, own_services

MOST_ADDED_MS: Final = 1.0  # of a submit's p99
MOST_ROLLBACK_MS: Final = 2000.0  # p99
MOST_QUEUE_SECONDS: Final = 30.0
MOST_WAIT_MS: Final = 1000.0
MOST_SCORE: Final = 1.0  # device time over that of a prefill as long
MOST_SHADOW: Final = 1.01  # the champion's p50 over that without a shadow, at the default sampling


def switching(*, quick: bool) -> dict[str, Any]:
    """Rollbacks and promotions."""
    with _house() as (house, candidate):
        told = switches.measured(house, candidate, *((3, 2) if quick else (30, 15)))
    back, forth = told["rollback"], told["promotion"]
    late = back["ms from the last failed job's end to the first routed back"]["p99"]
    harmed = forth["lost"] + forth["failed"] + forth["took more than a second"]
    return told | _targets(
        {
            "rollback: p99, ms": (late, MOST_ROLLBACK_MS),
            "rollback: jobs lost, or failed by the switch": (back["lost"] + back["failed by the switch"], 0),
            "promotion: jobs lost, failed or late": (harmed, 0),
        }
    )


def submitting(*, quick: bool) -> dict[str, Any]:
    """Submits beside submits."""
    with _house() as (house, _):
        told = submits.measured(house, 50 if quick else 1500)
    return told | _targets({"added p99, ms": (told["added ms"]["p99"], MOST_ADDED_MS)})


def shadowing(*, quick: bool) -> dict[str, Any]:
    """The champion with a shadow and without."""
    with _house() as (house, _):
        told = shadows.measured(house, *((10, 1) if quick else (30, 8)))
    over, scored = told["sampling 0.05"]["p50 over alone"], told["median score over its prefill"]
    return told | _targets(
        {
            "the champion's p50 over that alone, at the default sampling": (over, MOST_SHADOW),
            "a score's device time over that of its prefill": (scored, MOST_SCORE),
        }
    )


def queueing(*, quick: bool) -> dict[str, Any]:
    """A rollback with a great queue."""
    with _house() as (house, _):
        told = great_queue.measured(house, 2_000 if quick else 50_000)
    meanwhile = told["ms meanwhile"]
    return told | _targets(
        {
            "seconds until none is left": (told["seconds until none is left"], MOST_QUEUE_SECONDS),
            "longest claim or submit meanwhile, ms": (
                max(each["longest"] for each in meanwhile.values()),
                MOST_WAIT_MS,
            ),
        }
    )


LIVE: Final[Mapping[str, Callable[..., dict[str, Any]]]] = {
    "switches": switching,
    "submits": submitting,
    "shadow": shadowing,
    "queue": queueing,
}
"""Each measures something, says what it should be, and whether it is: `met`."""


@contextmanager
def _house() -> Iterator[tuple[House, Path]]:
    """Services, web and control process; version 1 serves the model, 2 is in a folder of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder,
        own_services() as services,
        open_house(services) as house,
        house.front(),
    ):
        candidate = Path(folder) / "candidate"
        shutil.copytree(DEMO_MODEL, candidate)
        add_version(house.database, candidate, "2")
        yield house, candidate


def _targets(reached: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    told = {name: {"value": value, "at_most": most, "met": value <= most} for name, (value, most) in reached.items()}
    return {"targets": told, "met": all(each["met"] for each in told.values())}
