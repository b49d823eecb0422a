"""Fetch the portal's third-party files from npm, at pinned versions, and list them with their digests in VENDORED.md.

    python web/vendor.py

The files are committed: neither a build nor a running portal needs npm or a network. To take a newer version, change it
here, run this, and look at the difference.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "web/static/vendor/VENDORED.md"

HEADER = """# Files by others

Written by `python web/vendor.py`; a test compares the digests with the files.

htmx's SSE extension is left out on purpose: it reconnects with a fresh `EventSource`, which forgets `Last-Event-ID`, so
a reader would get the stream from its beginning again. `static/js/live-job.js` keeps the browser's own reconnection,
which resumes.

| file | package | licence | bytes | sha256 |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Vendored:
    """One file of one package; `member` is its path there, `target` its path in this repository.

    `ending` is put behind what the package has, such as the export that makes a module of a script.
    """

    package: str
    licence: str
    member: str
    target: str
    ending: bytes = b""


FILES = [
    Vendored("htmx.org@2.0.11", "0BSD", "dist/htmx.min.js", "web/static/vendor/htmx.min.js"),
    Vendored(
        "@fontsource-variable/geist@5.3.0",
        "OFL-1.1",
        "files/geist-latin-wght-normal.woff2",
        "web/static/vendor/geist.woff2",
    ),
    Vendored(
        "@fontsource-variable/geist-mono@5.3.0",
        "OFL-1.1",
        "files/geist-mono-latin-wght-normal.woff2",
        "web/static/vendor/geist-mono.woff2",
    ),
    Vendored(
        "uplot@1.6.32",
        "MIT",
        "dist/uPlot.iife.min.js",
        "web/static/vendor/uplot.min.js",
        ending=b"\nexport default uPlot;\n",  # it has no minified module of its own
    ),
    Vendored("uplot@1.6.32", "MIT", "LICENSE", "web/static/vendor/LICENSE.uplot.txt"),
    Vendored("htmx.org@2.0.11", "0BSD", "LICENSE", "web/static/vendor/LICENSE.htmx.txt"),
    Vendored("@fontsource-variable/geist@5.3.0", "OFL-1.1", "LICENSE", "web/static/vendor/LICENSE.geist.txt"),
    Vendored("@fontsource-variable/geist-mono@5.3.0", "OFL-1.1", "LICENSE", "web/static/vendor/LICENSE.geist-mono.txt"),
    # Tests alone: it is not under web/static, so it is neither served nor shipped.
    Vendored("axe-core@4.14.1", "MPL-2.0", "axe.min.js", "tests/browser/vendor/axe.min.js"),
    Vendored("axe-core@4.14.1", "MPL-2.0", "LICENSE", "tests/browser/vendor/LICENSE.axe.txt"),
]


def fetch(package: str, folder: Path) -> Path:
    """The package's tarball, as npm serves it and after npm's own integrity check."""
    answer = subprocess.run(
        ["npm", "pack", "--silent", "--pack-destination", str(folder), package],
        check=True,
        capture_output=True,
        text=True,
    )
    return folder / answer.stdout.strip().splitlines()[-1]


def member_of(tarball: Path, name: str) -> bytes:
    """One file of a package."""
    with tarfile.open(tarball) as archive:
        file = archive.extractfile(f"package/{name}")
        if file is None:
            raise FileNotFoundError(f"{tarball.name} has no file {name}")
        return file.read()


def main() -> None:
    """Write every file and the list."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tarballs = {package: fetch(package, Path(folder)) for package in sorted({file.package for file in FILES})}
        for file in FILES:
            data = member_of(tarballs[file.package], file.member) + file.ending
            target = ROOT / file.target
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            rows.append(f"| `{file.target}` | {file.package} | {file.licence} | {len(data)} | `{digest}` |\n")
            sys.stdout.write(f"{file.target}  {len(data)} bytes\n")
    LIST.write_text(HEADER + "".join(rows))


if __name__ == "__main__":
    main()
