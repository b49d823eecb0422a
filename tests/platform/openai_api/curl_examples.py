"""The examples of docs/api/*.md: a call by curl, and the answer that it gets.

An example is two blocks that follow one another. The first one's fence says `sh`, and it holds one `curl`; the second
one's says `json 200` or `text 200`, the kind of the answer and its status (or `200 or 202`). In an answer `…` stands
for whatever is there, members of objects may be left out, and a list that ends with "…" may go on. A block that is
fenced as `jsonl NAME` is the file of that name.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Final

import httpx

ANYTHING: Final = "…"
NAMES: Final = {
    "job": "JOB", "key": "KEY", "usr": "PERSON", "ten": "TENANT", "whe": "ENDPOINT", "msg": "DELIVERY",
    "file": "FILE", "batch": "BATCH", "resp": "RESPONSE", "bulk": "BULK", "rol": "ROLLOUT", "rpl": "REPLAY",
}  # fmt: skip
"""What the id that an answer begins with is called in later examples, by its first part."""

_EXAMPLE: Final = re.compile(
    r"^```sh\n(?P<command>curl .*?)```\s*^```(?P<kind>json|text) (?P<statuses>\d+(?: or \d+)*)\n(?P<answer>.*?)```$",
    re.DOTALL | re.MULTILINE,
)
_FILE: Final = re.compile(r"^```jsonl (?P<name>\S+)\n(?P<content>.*?)```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """One call, where it stands, and what is shown of its answer."""

    place: str
    command: str
    kind: str
    statuses: tuple[int, ...]
    answer: str


@dataclass
class Call:
    """What a curl command asks for."""

    url: str = ""
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    content: str | None = None
    form: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, Path] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return httpx.URL(self.url).path

    def options(self) -> dict[str, Any]:
        """What httpx is to send."""
        head = {"method": self.method, "url": self.url, "headers": self.headers}
        if not self.uploads:
            return head | {"content": self.content}
        return head | {"data": self.form, "files": {n: (p.name, p.read_bytes()) for n, p in self.uploads.items()}}


def examples_of(page: Path) -> list[Example]:
    """The page's examples in order. Every block of a shell is one, or the page is wrong."""
    text = page.read_text()
    found = [
        Example(
            f"{page.name}:{text.count(chr(10), 0, match.start()) + 2}",
            match["command"],
            match["kind"],
            tuple(map(int, match["statuses"].split(" or "))),
            match["answer"],
        )
        for match in _EXAMPLE.finditer(text)
    ]
    assert len(found) == text.count("```sh\ncurl "), f"{page.name}: each curl is followed by the block of its answer"
    return found


def files_of(page: Path) -> Mapping[str, str]:
    """The files that the page shows."""
    return {match["name"]: match["content"] for match in _FILE.finditer(page.read_text())}


def call_of(command: str, known: Mapping[str, str], folder: Path) -> Call:
    """The command with its variables filled in. A file that it sends lies in the folder."""
    call, method = Call(), None
    words = iter(shlex.split(Template(command.replace("\\\n", "")).substitute(known))[1:])
    for word in words:
        match word:
            case "-X":
                method = next(words)
            case "-H":
                name, _, value = next(words).partition(": ")
                call.headers[name] = value
            case "--json":
                call.content, call.method = next(words), "POST"
                call.headers["Content-Type"] = "application/json"
            case "-F":
                _take_field(call, next(words), folder)
            case "-N":
                pass  # as it comes: we do not buffer either
            case _:
                assert not word.startswith("-"), f"curl {word}: teach this reader of examples"
                assert not call.url, f"{call.url} and {word}: one call at a time"
                call.url = word
    call.method = method or call.method
    return call


def _take_field(call: Call, given: str, folder: Path) -> None:
    name, _, value = given.partition("=")
    call.method = "POST"
    if value.startswith("@"):
        call.uploads[name] = folder / value[1:]
    else:
        call.form[name] = value


def differences(shown: Any, actual: Any, place: str = "") -> Iterator[str]:
    """Where the answer is not as shown."""
    if shown == ANYTHING:
        return
    if isinstance(shown, dict) and isinstance(actual, dict):
        for name, value in shown.items():
            if name in actual:
                yield from differences(value, actual[name], f"{place}.{name}")
            else:
                yield f"{place}.{name} is not there"
    elif isinstance(shown, list) and isinstance(actual, list):
        open_ended = shown[-1:] == [ANYTHING]
        wanted = shown[:-1] if open_ended else shown
        if len(actual) < len(wanted) or (len(actual) > len(wanted) and not open_ended):
            yield f"{place} has {len(actual)} members, not {len(wanted)}"
        for number, (one, other) in enumerate(zip(wanted, actual, strict=False)):
            yield from differences(one, other, f"{place}[{number}]")
    elif isinstance(shown, str) and isinstance(actual, str):
        if not fits(shown, actual):
            yield f"{place} is {actual!r}, not {shown!r}"
    elif shown != actual or type(shown) is not type(actual):
        yield f"{place} is {actual!r}, not {shown!r}"


def fits(shown: str, actual: str) -> bool:
    """Whether a text is as shown; what is shown up to a `…` at its end may go on."""
    pattern = ".*?".join(re.escape(part) for part in shown.split(ANYTHING))
    whole = re.compile(pattern, re.DOTALL)
    return bool(whole.match(actual) if shown.endswith(ANYTHING) else whole.fullmatch(actual))


def name_id(document: Any, known: dict[str, str]) -> None:
    """Remember the id that the answer has, for the calls that follow."""
    given = document.get("id") if isinstance(document, dict) else None
    if isinstance(given, str) and (name := NAMES.get(given.partition("_")[0])) is not None:
        known[name] = given
