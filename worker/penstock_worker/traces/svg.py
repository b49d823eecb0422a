"""Just enough SVG: elements as text, numbers kept short, text escaped."""

from collections.abc import Iterable
from html import escape

Number = float | int


def element(tag: str, *content: str, **attributes: str | Number) -> str:
    """`content` is markup. In names of attributes `_` stands for `-`; `cls` is `class`."""
    pairs = "".join(f' {_attribute(name)}="{_value(value)}"' for name, value in attributes.items())
    return f"<{tag}{pairs}>{''.join(content)}</{tag}>" if content else f"<{tag}{pairs}/>"


def text(words: str, x: Number, y: Number, cls: str, title: str = "") -> str:
    return element("text", *titled(title), escape(words), x=x, y=y, cls=cls)


def titled(title: str) -> Iterable[str]:
    """What a pointer that rests on the element is told."""
    return (f"<title>{escape(title)}</title>",) if title else ()


def rect(x: Number, y: Number, width: Number, height: Number, cls: str, title: str = "") -> str:
    return element("rect", *titled(title), x=x, y=y, width=width, height=height, cls=cls)


def line(x1: Number, y1: Number, x2: Number, y2: Number, cls: str) -> str:
    return element("path", d=f"M{short(x1)} {short(y1)}L{short(x2)} {short(y2)}", cls=cls)


def area(points: Iterable[tuple[Number, Number, Number]], base: Number, cls: str) -> str:
    """A filled staircase: each (left, right, height) stands on `base`; where they do not meet it falls to it."""
    parts: list[str] = []
    at: Number | None = None
    for left, right, height in points:
        if at is None or left > at:
            parts += [] if at is None else [f"V{short(base)}"]
            parts.append(f"M{short(left)} {short(base)}")
        parts.append(f"V{short(base - height)}H{short(right)}")
        at = right
    return element("path", d="".join([*parts, f"V{short(base)}"] if parts else []), cls=cls)


def short(value: Number) -> str:
    """Two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _attribute(name: str) -> str:
    return "class" if name == "cls" else name.replace("_", "-")


def _value(value: str | Number) -> str:
    return escape(value) if isinstance(value, str) else short(value)
