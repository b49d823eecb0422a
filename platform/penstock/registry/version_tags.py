"""A model folder as the tags of an MLflow model version, and back.

MLflow takes at most 100,000 characters in a tag, so long values go over several: `penstock.manifest`, then
`penstock.manifest.1` and so on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from penstock.errors import ModelFolderInvalid
from penstock.registry.folder import ModelFolder, manifest_digest

DIGEST_TAG: Final = "penstock.digest"
SOURCE_TAG: Final = "penstock.source"
_MAX_TAG_CHARACTERS: Final = 90_000


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What a version's tags say of it; the meanings are `ModelFolder`'s."""

    source: Path
    context_length: int
    recipe: dict[str, Any]
    manifest: dict[str, str]

    @property
    def digest(self) -> str:
        """The manifest's own SHA-256."""
        return manifest_digest(self.manifest)

    def within(self, longest: int | None) -> Self:
        """The same with a context of at most `longest` tokens, where that is given."""
        return self if longest is None else replace(self, context_length=min(self.context_length, longest))


def to_tags(folder: ModelFolder) -> dict[str, str]:
    """The tags under which the folder is registered."""
    return {
        SOURCE_TAG: str(folder.path),
        DIGEST_TAG: folder.digest,
        "penstock.architecture": folder.architecture,
        "penstock.context_length": str(folder.context_length),
        "penstock.dtype": folder.dtype,
        "penstock.total_bytes": str(folder.total_bytes),
        "penstock.tokenizer_sha256": folder.tokenizer_sha256,
        "penstock.chat_template_sha256": folder.chat_template_sha256 or "none",
        **_spread("penstock.recipe", json.dumps(folder.recipe, sort_keys=True)),
        **_spread("penstock.manifest", json.dumps(folder.manifest, sort_keys=True)),
    }


def from_tags(tags: Mapping[str, str]) -> VersionFacts:
    """Read the tags. Raises `ModelFolderInvalid` naming the tag that is missing or wrong."""
    manifest = _object(tags, "penstock.manifest")
    facts = VersionFacts(
        source=Path(_tag(tags, SOURCE_TAG)),
        context_length=_length(tags, "penstock.context_length"),
        recipe=_object(tags, "penstock.recipe"),
        manifest={str(name): str(digest) for name, digest in manifest.items()},
    )
    if not facts.source.is_absolute():
        raise ModelFolderInvalid(f"its tag {SOURCE_TAG} must be an absolute path, not {facts.source}")
    if facts.digest != _tag(tags, DIGEST_TAG):
        raise ModelFolderInvalid(f"its tags penstock.manifest and {DIGEST_TAG} do not belong together")
    return facts


def _spread(name: str, value: str) -> dict[str, str]:
    pieces = [value[start : start + _MAX_TAG_CHARACTERS] for start in range(0, len(value), _MAX_TAG_CHARACTERS)]
    return {name if number == 0 else f"{name}.{number}": piece for number, piece in enumerate(pieces)}


def _gather(tags: Mapping[str, str], name: str) -> str:
    pieces = [_tag(tags, name)]
    while (piece := tags.get(f"{name}.{len(pieces)}")) is not None:
        pieces.append(piece)
    return "".join(pieces)


def _tag(tags: Mapping[str, str], name: str) -> str:
    if not tags.get(name):
        raise ModelFolderInvalid(f"it has no tag {name}; register it with `penstock models register`")
    return tags[name]


def _object(tags: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        value = json.loads(_gather(tags, name))
    except ValueError as error:
        raise ModelFolderInvalid(f"its tag {name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFolderInvalid(f"its tag {name} must hold a JSON object")
    return value


def _length(tags: Mapping[str, str], name: str) -> int:
    value = _tag(tags, name)
    if not value.isdecimal() or int(value) < 1:
        raise ModelFolderInvalid(f"its tag {name} must be a number of tokens, not {value!r}")
    return int(value)
