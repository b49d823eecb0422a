"""What a page makes a browser fetch before it is complete, and what of that keeps it from painting."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Final
from urllib.parse import urljoin

_FETCHED: Final = frozenset({"stylesheet", "icon", "preload", "modulepreload"})
_IMPORTS: Final = re.compile(r'^(?:import|export)\b[^;"(]*"(\.{1,2}/[^"]+)"', re.MULTILINE)
_IMPORTS_LATER: Final = re.compile(r'\bimport\("(\.[^"]+)"\)')


@dataclass(frozen=True)
class Fetched:
    """An answer: how many bytes of it travelled, and its text as scripts are; fonts have none."""

    travelled: int
    text: str = ""


@dataclass(frozen=True)
class FirstLoad:
    """All that a first visit fetches: the page, and with it its charts' figures."""

    requests: int
    bytes: int


@dataclass
class Document:
    """What a document names. `blocking` is what keeps a browser from painting.

    That are stylesheets, scripts that neither wait nor are modules, and whatever is inline.
    """

    fetched: list[str] = field(default_factory=list)
    stylesheets: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    charts: list[str] = field(default_factory=list)
    blocking: list[str] = field(default_factory=list)


def read(html: str) -> Document:
    """What the document names, wherever in it that stands."""
    reader = _Reader()
    reader.feed(html)
    return reader.found


def first_load(address: str, page: Fetched, fetch: Callable[[str], Fetched]) -> FirstLoad:
    """Fetch what the page at that address needs, scripts with what they import, and add up what travels."""
    document = read(page.text)
    known: dict[str, Fetched] = {}
    waiting = [urljoin(address, each) for each in (*document.fetched, *document.scripts, *document.charts)]
    while waiting:
        here = waiting.pop()
        if here in known:
            continue
        known[here] = fetch(here)
        if here.endswith(".js"):
            waiting += [urljoin(here, each) for each in _imports(known[here].text, later=bool(document.charts))]
    return FirstLoad(1 + len(known), page.travelled + sum(each.travelled for each in known.values()))


def _imports(script: str, *, later: bool) -> list[str]:
    """Its neighbours: `later` also those that only pages with charts load."""
    return _IMPORTS.findall(script) + (_IMPORTS_LATER.findall(script) if later else [])


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = Document()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "link":
            self._link(named)
        elif tag == "script":
            self._script(named)
        elif tag == "style":
            self.found.blocking.append("<style>")
        if chart := named.get("data-chart"):
            self.found.charts.append(chart)

    def _link(self, named: dict[str, str | None]) -> None:
        kinds, address = set((named.get("rel") or "").split()), named.get("href") or ""
        if kinds & _FETCHED:
            self.found.fetched.append(address)
        if "stylesheet" in kinds:
            self.found.stylesheets.append(address)
            self.found.blocking.append(address)

    def _script(self, named: dict[str, str | None]) -> None:
        address = named.get("src")
        if address is not None:
            self.found.scripts.append(address)
        if address is None or not ("defer" in named or "async" in named or named.get("type") == "module"):
            self.found.blocking.append(address or "<script>")
