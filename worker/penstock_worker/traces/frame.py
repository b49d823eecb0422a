"""What the parts of the picture share: where time lies, and how everything looks."""

from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Final

WIDTH: Final = 1080
LEFT: Final = 132
RIGHT: Final = 20
MOST_TICKS: Final = 12

# Orange and blue are told apart by everybody; each pair is legible on its ground, light or dark.
STYLE: Final = """
svg{--ground:#fff;--ink:#1c2430;--soft:#667085;--rule:#e4e7ec;--band:#f6f7f9;--prefill:#e07b00;--decode:#3b74d9;
--wait:#98a2b3;--cached:#0f8a72;--preempted:#9b2fae;--failed:#d0281e;--limit:#98a2b3;--pages:#7a6ff0;--kept:#d9d6fe}
@media(prefers-color-scheme:dark){svg{--ground:#14181f;--ink:#e6e9ee;--soft:#98a2b3;--rule:#2a303a;--band:#1a1f28;
--prefill:#f59a23;--decode:#6a9cf5;--wait:#667085;--cached:#2cc5a5;--preempted:#d68be6;--failed:#ff6b61;
--limit:#667085;--pages:#9b93f7;--kept:#3a3766}}
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
.ground{fill:var(--ground)}.title{font-size:16px;font-weight:600}.soft{fill:var(--soft)}
.label{fill:var(--soft);text-anchor:end}.tick{fill:var(--soft);font-size:11px;text-anchor:middle}
.end{fill:var(--soft);font-size:11px}.name{text-anchor:end;font-size:var(--name-size)}
.rule{stroke:var(--rule);fill:none}.limit{stroke:var(--limit);stroke-dasharray:3 3;fill:none}
.prefill{fill:var(--prefill)}.decode{fill:var(--decode)}.pages{fill:var(--pages)}.kept{fill:var(--kept)}
.wait{fill:var(--wait)}.waiting{stroke:var(--wait);stroke-width:1.5;stroke-dasharray:1 3;fill:none}
.stay{stroke:var(--decode);stroke-opacity:.45;fill:none}.band{fill:var(--band)}
.finished{fill:var(--ink)}.cached{fill:var(--cached)}.preempted{fill:var(--preempted)}
.failed{stroke:var(--failed);stroke-width:2;fill:none}.aborted{stroke:var(--ink);stroke-width:1.5;fill:var(--ground)}
.hit{fill:transparent}.hit:hover{fill:var(--ink);fill-opacity:.1}
"""


@dataclass(frozen=True, slots=True)
class Scale:
    """Time to the right: `start` lies at LEFT, `end` at WIDTH - RIGHT."""

    start: float
    end: float

    def x(self, time: float) -> float:
        share = (time - self.start) / (self.end - self.start) if self.end > self.start else 0.0
        return LEFT + min(max(share, 0.0), 1.0) * (WIDTH - RIGHT - LEFT)

    def ticks(self) -> list[tuple[float, str]]:
        """Round times since the start, MOST_TICKS at most, as seconds and in words."""
        span = self.end - self.start
        if span <= 0:
            return [(0.0, "0")]
        step = _round_up(span / MOST_TICKS)
        factor, unit = (1, "s") if span >= 1 else (1000, "ms")
        decimals = max(0, -floor(log10(step * factor) + 1e-9))
        return [(at * step, f"{at * step * factor:.{decimals}f} {unit}") for at in range(floor(span / step + 1e-9) + 1)]


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power: float = 10.0 ** floor(log10(value))
    return next(each * power for each in (1, 2, 5, 10) if each * power >= value * (1 - 1e-9))


def nearly(value: float) -> int:
    """The smallest whole number that is not below `value`, but for what rounding adds."""
    return ceil(value - 1e-9)
