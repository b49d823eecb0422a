"""Invoices with known answers: every document is a pure function of (seed, index, split, difficulty).

The answer has five fields in this order: vendor, number, date (ISO 8601), currency (ISO 4217), total (a decimal
with two places). Dates written with slashes are day first, but for year/month/day.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random

from examples.invoices import vocabulary as words
from examples.invoices.layouts import Entry, Layout, Split, draw_layout, render

FIELDS = ("vendor", "number", "date", "currency", "total")
DISTRACTORS = (
    "customer",
    "order",
    "due",
    "delivered",
    "subtotal",
    "tax",
    "shipping",
    "phone",
    "address",
    "terms",
    "item",
)
EPOCH = date(2015, 1, 1)
DAYS = 365 * 15


@dataclass(frozen=True)
class Difficulty:
    """How much of an invoice a document shows: the curriculum's one dial."""

    fields: int = len(FIELDS)
    distractors: tuple[int, int] = (2, 6)


FULL = Difficulty()


@dataclass(frozen=True)
class Invoice:
    """A document and the answer that is right for it."""

    text: str
    answer: str
    vendor: str
    layout: Layout


@dataclass(frozen=True)
class Style:
    """What stays the same within one invoice: how dates and amounts are printed, and in which currency."""

    date: Callable[[date], str]
    amount: Callable[[int], str]
    currency: str
    currency_line: bool


def draw_invoice(seed: int, index: int, split: Split = Split.TRAIN, difficulty: Difficulty = FULL) -> Invoice:
    """Return invoice number `index` of the stream `seed`; the same arguments always give the same invoice."""
    rng = Random(f"{split}/{seed}/{index}/{difficulty}")
    layout = draw_layout(rng, split)
    kept = sorted(rng.sample(range(len(FIELDS)), difficulty.fields))
    fields = [FIELDS[i] for i in kept]
    style = _draw_style(rng, fields)
    vendor = draw_vendor(rng, split)
    issued = EPOCH + timedelta(days=rng.randrange(DAYS))
    cents = _draw_cents(rng)
    number = _draw_number(rng)
    printed = {"vendor": vendor, "number": number, "date": style.date(issued), "total": style.amount(cents)}
    entries = [Entry(name, printed[name]) for name in fields if name != "currency"]
    if style.currency_line:
        entries.append(Entry("currency", style.currency))
    entries += _draw_distractors(rng, split, style, difficulty, issued, cents)
    rng.shuffle(entries)
    answers = {"vendor": vendor, "number": number, "date": issued.isoformat(), "currency": style.currency}
    text = render(rng, layout, entries, split)
    return Invoice(text, _answer_json(answers, cents, fields), vendor, layout)


def _answer_json(answers: dict[str, str], cents: int, fields: Sequence[str]) -> str:
    """Compact JSON; the total is written by hand because a float would drop its trailing zero."""
    total = f"{cents // 100}.{cents % 100:02d}"
    values = {
        **{name: json.dumps(value, ensure_ascii=False) for name, value in answers.items()},
        "total": total,
    }
    return "{" + ",".join(f'"{name}":{values[name]}' for name in fields) + "}"


def draw_vendor(rng: Random, split: Split) -> str:
    """Draw a company's name; its distinctive words come from one side of the split alone."""
    first = _name_word(rng, split)
    shape = rng.random()
    if shape < 0.2:
        first = f"{first} & {_name_word(rng, split)}"
    elif shape < 0.4:
        first = f"{first} {_name_word(rng, split)}"
    elif shape < 0.45:
        first = f"{first}-{_name_word(rng, split)}"
    elif shape < 0.5:
        first = f"{rng.choice('ABCDEFGHJKLMNPRSTW')}. {first}"
    name = f"{first} {rng.choice(words.TRADES)}" if rng.random() < 0.6 else first
    name = f"{name} {rng.choice(words.LEGAL_FORMS)}".strip()
    return name.upper() if rng.random() < 0.06 else name


def _name_word(rng: Random, split: Split) -> str:
    if split is Split.HELD_OUT:
        return rng.choice(words.HELD_OUT_NAMES)
    if rng.random() < 0.3:
        return rng.choice(words.SURNAMES)
    while (word := _coined_word(rng)) in words.HELD_OUT_NAMES:
        pass
    return word


def _coined_word(rng: Random) -> str:
    """A word nobody knows, of syllables or of fragments of the words that invoices use for other things.

    Without the fragments a piece such as "der" would be met in "order" alone, and "Alder" could not be copied.
    """
    if rng.random() < 0.6:
        return "".join(_fragment(rng) for _ in range(rng.choice((2, 3, 3)))).capitalize()
    syllables = rng.choice((1, 2, 2, 2, 3, 3))
    parts = (rng.choice(words.ONSETS) + rng.choice(words.VOWELS) + rng.choice(words.CODAS) for _ in range(syllables))
    return "".join(parts).capitalize()


def _fragment(rng: Random) -> str:
    word = rng.choice(words.ALL_WORDS)
    start = rng.choice((0, rng.randrange(len(word) - 2)))
    return word[start : start + rng.randint(2, 5)]


def _draw_number(rng: Random) -> str:
    year = str(rng.randint(2015, 2029))
    digits = "".join(rng.choices("0123456789", k=rng.randint(3, 7)))
    prefix = rng.choice(("INV", "RE", "F", "A", "B", "INV", "R", "FA", "SI", "")) or _letters(rng, rng.randint(1, 4))
    dash = rng.choice("--/-")
    shapes = (
        f"{prefix}{dash}{digits}",
        f"{prefix}{digits}",
        digits,
        digits,
        f"{prefix}{dash}{year}{dash}{digits}",
        f"{year}{dash}{digits}",
        f"{digits}{dash}{_letters(rng, rng.randint(1, 2))}",
        f"{prefix}{year}-{digits}",
    )
    return rng.choice(shapes)


def _letters(rng: Random, count: int) -> str:
    return "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=count))


def _draw_cents(rng: Random) -> int:
    magnitude = rng.choices((3, 4, 5, 6, 7, 8, 9), (1, 3, 6, 7, 6, 3, 1))[0]
    cents = rng.randrange(10 ** (magnitude - 1), 10**magnitude)
    return cents - cents % 100 if rng.random() < 0.2 else cents


def _draw_style(rng: Random, fields: Sequence[str]) -> Style:
    currency = rng.choice(words.CURRENCIES)
    pattern = rng.choice(("{code} {n}", "{n} {code}", "{symbol}{n}", "{symbol}{n}", "{n} {symbol}", "{n}"))
    symbol = words.CURRENCY_SYMBOLS.get(currency)
    if symbol is None:
        pattern = pattern.replace("{symbol}{n}", "{code} {n}").replace("{symbol}", "{code}")
    group, point = rng.choice(((",", "."), (",", "."), ("", "."), (".", ","), (" ", ","), ("", ","), ("'", ".")))

    def amount(cents: int) -> str:
        whole = f"{cents // 100:,}".replace(",", group)
        return pattern.format(n=f"{whole}{point}{cents % 100:02d}", code=currency, symbol=symbol)

    told_by_amount = pattern != "{n}" and "total" in fields
    wanted = "currency" in fields
    line = wanted and (not told_by_amount or rng.random() < 0.15)
    return Style(rng.choice(DATE_FORMATS), amount, currency, line)


DATE_FORMATS: tuple[Callable[[date], str], ...] = (
    lambda d: d.isoformat(),
    lambda d: f"{d.year}/{d.month:02d}/{d.day:02d}",
    lambda d: f"{d.day:02d}.{d.month:02d}.{d.year}",
    lambda d: f"{d.day}.{d.month}.{d.year}",
    lambda d: f"{d.day:02d}/{d.month:02d}/{d.year}",
    lambda d: f"{d.day} {words.MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{d.day:02d} {words.MONTHS[d.month - 1][:3]} {d.year}",
    lambda d: f"{d.day}-{words.MONTHS[d.month - 1][:3]}-{d.year}",
    lambda d: f"{words.MONTHS[d.month - 1]} {d.day}, {d.year}",
    lambda d: f"{words.MONTHS[d.month - 1][:3]} {d.day}, {d.year}",
)


def _draw_distractors(
    rng: Random, split: Split, style: Style, difficulty: Difficulty, issued: date, cents: int
) -> list[Entry]:
    kinds = rng.sample(DISTRACTORS, rng.randint(*difficulty.distractors))
    later = issued + timedelta(days=rng.choice((7, 10, 14, 30, 45, 60)))
    earlier = issued - timedelta(days=rng.randint(1, 20))
    part = style.amount(max(100, cents * rng.randint(3, 95) // 100))
    values: dict[str, Callable[[], str]] = {
        "customer": lambda: draw_vendor(rng, split),
        "order": lambda: _draw_number(rng),
        "due": lambda: style.date(later),
        "delivered": lambda: style.date(earlier),
        "subtotal": lambda: style.amount(cents * 100 // 120),
        "tax": lambda: part,
        "shipping": lambda: part,
        "phone": lambda: _draw_phone(rng),
        "address": lambda: _draw_address(rng),
        "terms": lambda: rng.choice(("Net 30", "30 days", "Net 14", "Net 60", "Due on receipt")),
        "item": lambda: f"{rng.randint(1, 40)} x {rng.choice(words.ITEMS)}",
    }
    return [Entry(kind, values[kind]()) for kind in kinds]


def _draw_phone(rng: Random) -> str:
    return f"+{rng.randint(1, 99)} {rng.randint(100, 999)} {rng.randint(1000, 99999)}"


def _draw_address(rng: Random) -> str:
    return f"{rng.randint(1, 200)} {rng.choice(words.STREETS)} {rng.choice(words.STREET_KINDS)}"
