"""The live parts together, and what they are to reach."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.gates_parts import shadows, submits, switches
from bench.platform_parts.house import House, null_worker, open_house, own_services

MOST_ADDED_MS: Final = 1.0  # of a submit's p99
MOST_ROLLBACK_MS: Final = 2000.0  # p99
MOST_SHADOW: Final = 1.01  # the champion's p50 over that without a shadow, at the default sampling


def measure_live(*, quick: bool) -> dict[str, Any]:
    """Every part, and whether all targets were met."""
    with _house() as (house, folder):
        switching = switches.measured(house, folder, *((3, 2) if quick else (40, 20)))
        with house.worker(*null_worker(0.0)):
            submitting = submits.measured(house, 50 if quick else 2000)
    with _house() as (house, folder):
        shadowing = shadows.measured(house, folder, *((10, 1) if quick else (40, 6)))
    targets = _targets(switching, submitting, shadowing)
    return (
        {"targets": targets, "met": all(each["met"] for each in targets.values())}
        | switching
        | {
            "submits": submitting,
            "shadow": shadowing,
        }
    )


@contextmanager
def _house() -> Iterator[tuple[House, Path]]:
    """Services, web and control process, and a folder for a candidate's copy."""
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder,
        own_services() as services,
        open_house(services) as house,
        house.front(),
    ):
        yield house, Path(folder)


def _targets(switching: dict[str, Any], submitting: dict[str, Any], shadowing: dict[str, Any]) -> dict[str, Any]:
    back, forth = switching["rollback"], switching["promotion"]
    latency = back["ms from the last failed job's end to the first routed back"]
    reached = {
        "rollback: p99, ms": (latency["p99"], MOST_ROLLBACK_MS),
        "rollback: jobs lost, or failed by the switch": (back["lost"] + back["failed by the switch"], 0),
        "promotion: jobs lost, failed or late": (
            forth["lost"] + forth["failed"] + forth["took more than a second"],
            0,
        ),
        "a submit: added p99, ms": (submitting["added ms"]["p99"], MOST_ADDED_MS),
        "shadow: the champion's p50 over that alone": (shadowing["sampling 0.05"]["p50 over alone"], MOST_SHADOW),
    }
    return {name: {"value": value, "at_most": most, "met": value <= most} for name, (value, most) in reached.items()}
