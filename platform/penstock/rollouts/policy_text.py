"""Policies as text that people edit: YAML with every member, in which line a member stands, and what two differ in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from penstock.rollouts.policy import Policy

_DURATIONS: Final = frozenset({"timeout", "keep_warm"})
_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_WIDTH: Final = 100


def written(policy: Policy) -> str:
    """The policy in full as YAML, which `read_policy` reads as the same policy."""
    document = _spelled(policy.model_dump(mode="json"))
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=_WIDTH)


@dataclass(frozen=True, slots=True)
class Change:
    """A member that two policies differ in, by its path, and what it is in each, as YAML on one line."""

    path: str
    before: str
    after: str


def changes(before: Policy, after: Policy) -> list[Change]:
    """What the second says otherwise, in the order of its members."""
    old, new = (_spelled(policy.model_dump(mode="json")) for policy in (before, after))
    return list(_changes(old, new, ""))


def _changes(old: Any, new: Any, path: str) -> Iterator[Change]:
    """Member by member where both have the same ones, else as a whole."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for name in new:
            yield from _changes(old[name], new[name], f"{path}.{name}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and isinstance(new[0], dict):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _changes(one, other, f"{path}.{number}")
    elif old != new:
        yield Change(path, _on_a_line(old), _on_a_line(new))


def _on_a_line(value: Any) -> str:
    return (
        yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=10_000).removesuffix("\n...\n").rstrip()
    )


def line_of(text: str, path: str) -> int | None:
    """In which line, from 1, the member of that path stands, or else what is nearest around it; none in no YAML."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    if node is None:
        return None
    line = node.start_mark.line
    for part in path.split("."):
        found = _member(node, part)
        if found is None:
            break
        line, node = found
    return line + 1


def _member(node: yaml.Node, name: str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark.line, value) for key, value in node.value if key.value == name), None)
    if isinstance(node, yaml.SequenceNode) and name.isdigit() and int(name) < len(node.value):
        value = node.value[int(name)]
        return value.start_mark.line, value
    return None


def _spelled(document: Any) -> Any:
    """With durations as people write them."""
    if isinstance(document, Mapping):
        return {name: _duration(value) if name in _DURATIONS else _spelled(value) for name, value in document.items()}
    return [_spelled(each) for each in document] if isinstance(document, list) else document


def _duration(seconds: int) -> str:
    unit, size = next((unit, size) for unit, size in _UNITS if seconds % size == 0 and (unit != "d" or seconds > size))
    return f"{seconds // size}{unit}"
