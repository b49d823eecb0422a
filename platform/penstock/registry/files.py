"""The files of a model folder: names, JSON, SHA-256. Everything wrong with them is a `ModelFolderInvalid`."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from penstock.errors import ModelFolderInvalid

Progress = Callable[[int, int], None]
"""Told of bytes done and bytes in all."""

_CHUNK_BYTES: Final = 1 << 20


def require_folder(folder: Path) -> Path:
    """The folder's real path. Raises when there is no such folder or it cannot be read."""
    try:
        if folder.is_dir():
            return folder.resolve()
        found = "it is a file" if folder.exists() else "it does not exist"
    except OSError as error:
        found = str(error)
    raise ModelFolderInvalid(f"{folder} is not a model folder: {found}; give a folder that holds config.json")


def list_files(folder: Path) -> list[Path]:
    """Every file below the folder but hidden ones, in order of name. Raises when a link leads out of the folder."""
    root = require_folder(folder)
    found = []
    for path in sorted(root.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        _refuse_escape(root, path)
        if path.is_file():
            found.append(path)
    return found


def file_in(folder: Path, name: str) -> Path:
    """The file of that name. Raises when it is missing or leads out of the folder."""
    path = folder / name
    _refuse_escape(folder.resolve(), path)
    if not path.is_file():
        raise ModelFolderInvalid(f"{folder} lacks {name}; a model folder holds it next to config.json", file=name)
    return path


def read_text(folder: Path, name: str) -> str:
    """A file of the folder that must hold UTF-8 text."""
    path = file_in(folder, name)
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ModelFolderInvalid(f"{path} cannot be read as UTF-8 text: {error}", file=name) from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A file of the folder that must hold a JSON object."""
    path = file_in(folder, name)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise ModelFolderInvalid(f"{path} cannot be read as JSON: {error}", file=name) from error
    if not isinstance(content, dict):
        raise ModelFolderInvalid(f"{path} holds {type(content).__name__}, not a JSON object", file=name)
    return content


def read_json_if_there(folder: Path, name: str) -> dict[str, Any]:
    """As `read_json`, but an absent file is an empty object."""
    return read_json(folder, name) if (folder / name).exists() else {}


def hash_files(folder: Path, paths: Iterable[Path], progress: Progress | None = None) -> dict[str, str]:
    """Name (relative to the folder, with `/`) to SHA-256 of each file, read in pieces."""
    files = list(paths)
    total, done = sum(path.stat().st_size for path in files), 0
    manifest = {}
    for path in files:
        digest = hashlib.sha256()
        with _open(path) as file:
            while piece := file.read(_CHUNK_BYTES):
                digest.update(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
        manifest[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return manifest


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise ModelFolderInvalid(f"{path} cannot be read: {error.strerror}", file=path.name) from error


def _refuse_escape(root: Path, path: Path) -> None:
    target = path.resolve()
    if not target.is_relative_to(root):
        raise ModelFolderInvalid(
            f"{path} leads out of the model folder, to {target}; copy the file itself into the folder (cp -L)",
            file=path.name,
        )
