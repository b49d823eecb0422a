"""How an invoice is laid out on the page: independent factors, drawn at random, in training or held out.

A layout is an arrangement (how a label and its value stand together), its separator, the casing of labels,
the bullet in front of lines and whether the vendor stands as an unlabelled letterhead. One combination in
five is held out by a stable hash; those that use a held-out separator or bullet always are.
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from examples.invoices import vocabulary as words

HELD_OUT_SHARE = 5
"""One layout combination in this many is held out."""


class Split(StrEnum):
    """Which side of the held-out line a document is drawn from."""

    TRAIN = "train"
    HELD_OUT = "held-out"


class Arrangement(StrEnum):
    """How a label and its value stand together."""

    LINES = "lines"
    COLUMNS = "columns"
    STACKED = "stacked"
    TABLE = "table"
    LEADERS = "leaders"
    BRACKETS = "brackets"
    SENTENCES = "sentences"


ARRANGEMENT_WEIGHTS = {
    Arrangement.LINES: 30,
    Arrangement.COLUMNS: 14,
    Arrangement.STACKED: 10,
    Arrangement.TABLE: 10,
    Arrangement.LEADERS: 12,
    Arrangement.BRACKETS: 8,
    Arrangement.SENTENCES: 16,
}


class Casing(StrEnum):
    """How labels are cased."""

    PLAIN = "plain"
    UPPER = "upper"
    LOWER = "lower"
    TITLE = "title"

    def apply(self, text: str) -> str:
        """Return `text` in this casing."""
        transform = {Casing.UPPER: str.upper, Casing.LOWER: str.lower, Casing.TITLE: str.title}.get(self)
        return transform(text) if transform else text


@dataclass(frozen=True)
class Entry:
    """One fact on the page: what kind of fact (a key of `vocabulary.LABELS`) and its printed value."""

    kind: str
    value: str


@dataclass(frozen=True)
class Layout:
    """One way of laying an invoice out."""

    arrangement: Arrangement
    separator: str
    casing: Casing
    bullet: str
    letterhead: bool

    @property
    def key(self) -> str:
        """The layout's identity: two documents share a layout when their keys are equal.

        Sentences have no labels, so their casing tells nothing apart.
        """
        casing = "" if self.arrangement is Arrangement.SENTENCES else self.casing.value
        return repr((self.arrangement.value, self.separator, casing, self.bullet, self.letterhead))

    @property
    def novel(self) -> bool:
        """True where the separator or bullet is one that training never shows in any layout of this kind."""
        separators = words.HELD_OUT_SEPARATORS[self.arrangement]
        return self.separator in separators or self.bullet in words.HELD_OUT_BULLETS

    @property
    def held_out(self) -> bool:
        """True for the layouts that training never shows: the novel ones and a fifth of the combinations."""
        return self.novel or hashlib.sha256(self.key.encode()).digest()[0] % HELD_OUT_SHARE == 0


def draw_layout(rng: Random, split: Split) -> Layout:
    """Draw a layout from one side of the split; redraws until the side is right."""
    while True:
        layout = _any_layout(rng, split)
        if layout.held_out == (split is Split.HELD_OUT):
            return layout


def _any_layout(rng: Random, split: Split) -> Layout:
    arrangement = rng.choices(list(ARRANGEMENT_WEIGHTS), list(ARRANGEMENT_WEIGHTS.values()))[0]
    bullets = words.BULLETS + (words.HELD_OUT_BULLETS if split is Split.HELD_OUT else ())
    return Layout(
        arrangement=arrangement,
        separator=_separator(rng, arrangement, split),
        casing=rng.choices(list(Casing), (5, 2, 2, 3))[0],
        bullet=rng.choice(bullets) if arrangement in (Arrangement.LINES, Arrangement.LEADERS) else "",
        letterhead=rng.random() < 0.2,
    )


def _separator(rng: Random, arrangement: Arrangement, split: Split) -> str:
    if split is Split.HELD_OUT:
        return rng.choice(words.SEPARATORS[arrangement] + words.HELD_OUT_SEPARATORS[arrangement])
    if arrangement in (Arrangement.LINES, Arrangement.COLUMNS) and rng.random() < 0.3:
        return _invented_separator(rng)
    return rng.choice(words.SEPARATORS[arrangement])


def _invented_separator(rng: Random) -> str:
    """One to four marks and optional spaces: too many separators to be learnt by heart."""
    marks = rng.choice(words.SEPARATOR_CHARACTERS) * rng.choice((1, 1, 2, 3))
    if rng.random() < 0.3:
        marks += rng.choice(words.SEPARATOR_CHARACTERS)
    left, right = rng.choice((" ", "", "  ")), rng.choice((" ", " ", "  "))
    return left + marks + right


def draw_label(rng: Random, kind: str, split: Split) -> str:
    """Draw the words in front of a value of this kind."""
    phrases = words.LABELS[kind]
    return rng.choice(phrases + (words.HELD_OUT_LABELS.get(kind, ()) if split is Split.HELD_OUT else ()))


def draw_clause(rng: Random, kind: str, split: Split) -> str:
    """Draw a clause with `{}` where a value of this kind stands."""
    phrases = words.CLAUSES[kind]
    return rng.choice(phrases + (words.HELD_OUT_CLAUSES.get(kind, ()) if split is Split.HELD_OUT else ()))


def render(rng: Random, layout: Layout, entries: list[Entry], split: Split) -> str:
    """Print `entries` in order in `layout`; with a letterhead the vendor comes first and has no label."""
    heading: list[str] = []
    if layout.letterhead:
        heading = [entry.value for entry in entries if entry.kind == "vendor"]
        entries = [entry for entry in entries if entry.kind != "vendor"]
    if layout.arrangement is Arrangement.SENTENCES:
        body = _sentences(rng, layout, entries, split)
    else:
        labelled = [(layout.casing.apply(draw_label(rng, entry.kind, split)), entry.value) for entry in entries]
        columns = layout.arrangement is Arrangement.COLUMNS
        body = (_columns if columns else _lines)(rng, layout, labelled)
    return "\n".join([*heading, *_title(rng), body, *_farewell(rng)])


def _title(rng: Random) -> list[str]:
    return [rng.choice(words.TITLES)] if rng.random() < 0.3 else []


def _farewell(rng: Random) -> list[str]:
    return [rng.choice(words.FAREWELLS)] if rng.random() < 0.15 else []


def _lines(rng: Random, layout: Layout, labelled: list[tuple[str, str]]) -> str:
    width = max((len(label) for label, _ in labelled), default=0) + rng.randint(2, 6)
    gap = rng.choice(("\n", "\n", "\n", "\n\n")) if layout.arrangement is Arrangement.STACKED else "\n"
    return gap.join(_line(layout, label, value, width) for label, value in labelled)


def _line(layout: Layout, label: str, value: str, width: int) -> str:
    mark = layout.separator
    match layout.arrangement:
        case Arrangement.LEADERS:
            return f"{layout.bullet}{label} {mark * (max(3, width - len(label)) // len(mark))} {value}"
        case Arrangement.BRACKETS:
            return f"{mark[0]}{label}{mark[1]} {value}"
        case Arrangement.TABLE:
            return f"| {label} {mark}{value} |" if mark.startswith("|") else f"{label}{mark}{value}"
        case _:
            return f"{layout.bullet}{label}{mark}{value}"


def _columns(rng: Random, layout: Layout, labelled: list[tuple[str, str]]) -> str:
    cells = [f"{label}{layout.separator}{value}" for label, value in labelled]
    left, right = cells[0::2], cells[1::2]
    width = max((len(cell) for cell in left), default=0) + rng.randint(3, 6)
    right += [""] * (len(left) - len(right))
    return "\n".join((a.ljust(width) + b).rstrip() for a, b in zip(left, right, strict=True))


def _sentences(rng: Random, layout: Layout, entries: list[Entry], split: Split) -> str:
    """Sentences of one or two clauses; the separator joins clauses, or is the white space between sentences."""
    clauses = [draw_clause(rng, entry.kind, split).format(entry.value) for entry in entries]
    between = layout.separator if layout.separator.isspace() else " "
    joiner = " and " if layout.separator.isspace() else layout.separator
    sentences = []
    while clauses:
        size = rng.choice((1, 2))
        sentence = joiner.join(clauses[:size])
        sentences.append(f"{sentence[:1].upper()}{sentence[1:]}.")
        clauses = clauses[size:]
    return between.join(sentences)
