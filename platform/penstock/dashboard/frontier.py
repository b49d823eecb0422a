"""Quality against bytes as a picture (SVG): each version at its share of its reference's bytes and what that lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Final

from penstock.dashboard.lineage import VersionLine

WIDTH: Final = 640
HEIGHT: Final = 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 16, 40
_LEAST: Final = 1e-5  # nats: what lost less is drawn as having lost that


@dataclass(frozen=True, slots=True)
class Mark:
    """A version in the picture; x and y in its units."""

    version: str
    scheme: str
    x: float
    y: float
    champion: bool
    says: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A line across the picture, and what it stands for."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Frontier:
    """The picture: less bytes to the left, less lost (by a logarithmic scale) further down."""

    marks: Sequence[Mark]
    columns: Sequence[Tick]
    rows: Sequence[Tick]


def frontier(lines: Sequence[VersionLine]) -> Frontier | None:
    """Of the versions that were evaluated; None where there are none."""
    judged = [(line, line.quality) for line in lines if line.quality is not None and line.quality.ratio is not None]
    if not judged:
        return None
    lost = [max(quality.mean_kld, _LEAST) for _, quality in judged]
    low, high = floor(log10(min(lost))), max(ceil(log10(max(lost))), floor(log10(min(lost))) + 1)
    widest = max(1.0, *(quality.ratio or 0.0 for _, quality in judged))

    def x(ratio: float) -> float:
        return round(_LEFT + ratio / widest * (WIDTH - _LEFT - _RIGHT), 1)

    def y(kld: float) -> float:
        share = (log10(max(kld, _LEAST)) - low) / (high - low)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    marks = [
        Mark(
            line.deployment.model_version,
            str(line.deployment.recipe.get("scheme", "none")),
            x(quality.ratio or 0.0),
            y(quality.mean_kld),
            "champion" in line.roles,
            f"{line.deployment.model_version}: {quality.ratio:.0%} of the bytes, mean KLD {quality.mean_kld:.2g}",
        )
        for line, quality in judged
    ]
    columns = [Tick(x(share * widest), f"{share * widest:.0%}") for share in (0.25, 0.5, 0.75, 1.0)]
    return Frontier(marks, columns, [Tick(y(10.0**power), f"{10.0**power:g}") for power in range(low, high + 1)])
