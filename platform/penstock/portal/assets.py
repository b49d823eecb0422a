"""Templates and static files: where they live, and static files under addresses that name their content.

All files of `web/static` are read once. One digest over all of them is part of each address, `/assets/<digest>/<name>`.
Browsers may keep them for a year, and stylesheets and scripts name their neighbours by relative paths.
"""

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STYLESHEET: Final = "portal.css"
_COMPRESSIBLE: Final = frozenset({"text/css", "text/javascript", "image/svg+xml"})
_MEDIA_TYPES: Final = {".js": "text/javascript", ".woff2": "font/woff2"}


@dataclass(frozen=True, slots=True)
class Asset:
    """One static file; `gzipped` where that is worth sending."""

    body: bytes
    gzipped: bytes | None
    media_type: str


class Assets:
    """The static files of one folder. `css/*.css` are served as one stylesheet, in the order of their names."""

    def __init__(self, folder: Path) -> None:
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if _is_served(path)}
        bodies = {name: path.read_bytes() for name, path in files.items() if not name.startswith("css/")}
        bodies[STYLESHEET] = b"".join(path.read_bytes() for name, path in files.items() if name.startswith("css/"))
        self._assets = {name: _asset(name, body) for name, body in bodies.items()}
        self.digest: Final = _digest(bodies)

    def address(self, name: str) -> str:
        """The path that serves a file. Raises `KeyError` for one that is not there, so that no page names it."""
        self._assets[name]
        return f"/assets/{self.digest}/{name}"

    def get(self, name: str) -> Asset | None:
        """The file of that name, if there is one."""
        return self._assets.get(name)


def web_folder() -> Path:
    """`web/` of the source tree, or its copy inside an installed wheel."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_web"
    return installed if installed.is_dir() else package.parent.parent / "web"


def _is_served(path: Path) -> bool:
    return path.is_file() and path.suffix not in {".md", ".txt"}


def _asset(name: str, body: bytes) -> Asset:
    media_type = _MEDIA_TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Asset(body, gzip.compress(body, mtime=0) if media_type in _COMPRESSIBLE else None, media_type)


def _digest(bodies: dict[str, bytes]) -> str:
    total = hashlib.sha256()
    for name in sorted(bodies):
        total.update(f"{name}\0{len(bodies[name])}\0".encode() + bodies[name])
    return total.hexdigest()[:16]
