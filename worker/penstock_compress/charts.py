"""Charts as SVG: axes, marks and labels that keep out of each other's way. No script, no font, nothing to load."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from math import ceil, floor, log10
from typing import Final

# Dark enough on white for text; told apart by those who do not see red or green.
STYLE: Final = """
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:#1c2430}
.ground{fill:#fff}.title{font-size:16px;font-weight:600}.panel{font-size:13px;font-weight:600}.soft{fill:#5b6675}
.tick{fill:#5b6675;font-size:11px}.rule{stroke:#e4e7ec;fill:none}.axis{stroke:#98a2b3;fill:none}
.mean{stroke:#2257c4;stroke-width:2;fill:none}.band{fill:#3b74d9;fill-opacity:.16}
.floor{stroke:#0f8a72;stroke-width:1.5;stroke-dasharray:4 3;fill:none}
.point{fill:#98a2b3}.best{fill:#2257c4}.point-error{stroke:#98a2b3;stroke-width:1.2;fill:none}
.best-error{stroke:#2257c4;stroke-width:1.2;fill:none}.front{stroke:#2257c4;stroke-width:1.5;fill:none}
.name{font-size:11px;fill:#5b6675}.best-name{font-size:11px;fill:#1c2430;font-weight:600}
.leader{stroke:#98a2b3;stroke-width:.8;fill:none}
"""
LETTER: Final = 6.6  # pixels that a bold letter of 11 takes
SMALL: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LINE: Final = 13
Number = float | int


@dataclass(frozen=True, slots=True)
class Axis:
    """Numbers from `low` to `high` along pixels; `to_low` is where `low` lies."""

    low: float
    high: float
    to_low: float
    to_high: float
    logarithmic: bool = False
    unit: str = ""  # of tick labels: "%" or "kB"

    def at(self, value: float) -> float:
        """The pixel, at the end of the axis where a number lies beyond it."""
        low, high, value = (self._scaled(each) for each in (self.low, self.high, max(value, self.low)))
        return self.to_low + min(1.0, (value - low) / (high - low)) * (self.to_high - self.to_low)

    def ticks(self) -> list[tuple[float, str]]:
        """Round numbers within, in words."""
        if self.logarithmic:
            powers = range(ceil(log10(self.low) - 1e-9), floor(log10(self.high) + 1e-9) + 1)
            return [(10.0**power, _power(power)) for power in powers]
        step = _round_up((self.high - self.low) / 6)
        decimals = max(0, -floor(log10(step) + 1e-9))
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [(at * step, f"{at * step:,.{decimals}f}{self.unit}") for at in range(first, last + 1)]

    def _scaled(self, value: float) -> float:
        return log10(value) if self.logarithmic else value


@dataclass
class Panel:
    """One chart: x to the right, y upwards. What is drawn is added to `marks`; labels are set when all are known."""

    title: str
    x: Axis
    y: Axis
    x_name: str
    y_name: str
    marks: list[str] = field(default_factory=list)
    taken: list["Box"] = field(default_factory=list)  # where no label may lie

    def line(self, points: Sequence[tuple[float, float]], cls: str) -> None:
        """From point to point; labels keep out of its way where it is upright or level."""
        at = [(self.x.at(x), self.y.at(y)) for x, y in points]
        self.marks.append(path(at, cls))
        ends = pairwise(at)
        self.taken += [Box(min(a, c) - 1, min(b, d) - 1, max(a, c) + 1, max(b, d) + 1) for (a, b), (c, d) in ends]

    def area(self, points: Sequence[tuple[float, float]], cls: str) -> None:
        """From the bottom up to the points."""
        ends = [(points[-1][0], self.y.low), (points[0][0], self.y.low)]
        self.marks.append(path([(self.x.at(x), self.y.at(y)) for x, y in [*points, *ends]], cls, closed=True))

    def dot(self, x: float, y: float, cls: str, title: str) -> None:
        """A mark that tells `title` to a pointer that rests on it."""
        at_x, at_y = self.x.at(x), self.y.at(y)
        told = element("title", escape(title))
        self.marks.append(element("circle", told, cx=at_x, cy=at_y, r=4.5, cls=cls))
        self.taken.append(Box(at_x - 6, at_y - 6, at_x + 6, at_y + 6))

    def label(self, words: str, x: float, y: float, cls: str) -> None:
        """Beside a mark, where nothing else is; with a line to it where that is not near."""
        at_x, at_y, width = self.x.at(x), self.y.at(y), LETTER * len(words)
        box = min(_places(at_x, at_y, width), key=lambda each: self._cost(each, at_x, at_y))
        middle = (box.left + box.right) / 2
        if box.distance(at_x, at_y) > 9:
            near = min(max(at_x, box.left), box.right)
            self.marks.append(path([(at_x, at_y), (near, box.bottom if box.bottom < at_y else box.top)], "leader"))
        self.marks.append(text(words, middle, box.bottom - 3, cls, "middle"))
        self.taken.append(box)

    def _cost(self, box: "Box", x: float, y: float) -> float:
        """Overlaps first, then how far it is."""
        left, right = sorted((self.x.to_low, self.x.to_high))
        top, bottom = sorted((self.y.to_low, self.y.to_high))
        outside = box.left < left or box.right > right + 60 or box.top < top or box.bottom > bottom
        return 10 * sum(box.overlap(each) for each in self.taken) + 1e5 * outside + box.distance(x, y)

    def draw(self) -> Iterable[str]:
        left, right, bottom, top = self.x.to_low, self.x.to_high, self.y.to_low, self.y.to_high
        yield text(self.title, left, top - 12, "panel")
        for value, words in self.y.ticks():
            yield path([(left, self.y.at(value)), (right, self.y.at(value))], "rule")
            yield text(words, left - 7, self.y.at(value) + 4, "tick", "end")
        for value, words in self.x.ticks():
            yield path([(self.x.at(value), bottom), (self.x.at(value), bottom + 4)], "axis")
            yield text(words, self.x.at(value), bottom + 17, "tick", "middle")
        yield path([(left, top), (left, bottom), (right, bottom)], "axis")
        yield text(self.x_name, (left + right) / 2, bottom + 36, "soft", "middle")
        turned = f"rotate(-90 {short(left - 52)} {short((top + bottom) / 2)})"
        name = escape(self.y_name)
        yield element(
            "text", name, x=left - 52, y=(top + bottom) / 2, cls="soft", text_anchor="middle", transform=turned
        )
        yield from self.marks


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    def distance(self, x: float, y: float) -> float:
        """From a point to the nearest of it."""
        across = max(self.left - x, x - self.right, 0.0)
        along = max(self.top - y, y - self.bottom, 0.0)
        return float((across**2 + along**2) ** 0.5)


def picture(title: str, notes: Sequence[str], panels: Sequence[Panel], width: float, height: float) -> str:
    """One SVG file."""
    head = [text(title, 24, 30, "title"), *(text(note, 24, 50 + 16 * at, "soft") for at, note in enumerate(notes))]
    drawn = [mark for panel in panels for mark in panel.draw()]
    ground = element("rect", x=0, y=0, width=width, height=height, cls="ground")
    box = f"0 0 {short(width)} {short(height)}"
    parts = [f"<style>{STYLE}</style>", ground, *head, *drawn]
    whole = element(
        "svg", *parts, xmlns="http://www.w3.org/2000/svg", role="img", width=width, height=height, viewBox=box
    )
    return f"{whole}\n"


def text(words: str, x: Number, y: Number, cls: str, anchor: str = "start") -> str:
    return element("text", escape(words), x=x, y=y, cls=cls, text_anchor=anchor)


def path(points: Sequence[tuple[float, float]], cls: str, *, closed: bool = False) -> str:
    told = "L".join(f"{short(x)} {short(y)}" for x, y in points)
    return element("path", d=f"M{told}{'Z' if closed else ''}", cls=cls)


def element(tag: str, *content: str, **attributes: str | Number) -> str:
    """`content` is markup. In names of attributes `_` stands for `-`; `cls` is `class`."""
    pairs = "".join(f' {_attribute(name)}="{_value(value)}"' for name, value in attributes.items())
    return f"<{tag}{pairs}>{''.join(content)}</{tag}>" if content else f"<{tag}{pairs}/>"


def short(value: Number) -> str:
    """Two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def _attribute(name: str) -> str:
    return "class" if name == "cls" else name.replace("_", "-")


def _value(value: str | Number) -> str:
    return escape(value) if isinstance(value, str) else short(value)


def _places(x: float, y: float, width: float) -> Iterable[Box]:
    """Where a label of that width may lie: beside the mark, above, below; then further off."""
    for away in (8.0, 20.0, 34.0, 50.0):
        for left, middle in (
            (x + away, y),
            (x - away - width, y),
            (x - width / 2, y - away - 4),
            (x - width / 2, y + away + 4),
            (x + away * 0.8, y - away),
            (x + away * 0.8, y + away),
            (x - away * 0.8 - width, y - away),
            (x - away * 0.8 - width, y + away),
        ):
            yield Box(left, middle - LINE / 2, left + width, middle + LINE / 2)


def _power(of: int) -> str:
    """Of ten, in words: 0.01, or 10 with a small number."""
    return f"{10.0**of:g}" if -4 < of < 4 else "10" + str(of).translate(SMALL)


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power: float = 10.0 ** floor(log10(value))
    return next(each * power for each in (1, 2, 5, 10) if each * power >= value * (1 - 1e-9))
