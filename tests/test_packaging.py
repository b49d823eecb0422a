"""The wheel holds everything that a user needs, and runs from outside the repository."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked as pip does it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)], check=True
    )
    (wheel,) = folder.glob("penstock-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run(installed: Path, *arguments: str, cwd: Path) -> str:
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout


def test_the_installed_package_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    for package in ("penstock", "penstock_worker", "penstock_engine", "penstock_kernels"):
        where = run(installed, "-c", f"import {package}; print({package}.__file__)", cwd=tmp_path)
        assert where.startswith(str(installed))


def test_templates_migrations_and_demo_travel_along(installed: Path) -> None:
    assert (installed / "penstock/_web/templates").is_dir()
    assert (installed / "penstock/_migrations/versions/0001_the_job_path.py").is_file()
    assert (installed / "penstock/_demo/model/model.safetensors").is_file()
    assert (installed / "penstock/py.typed").is_file()


def test_the_command_line_works_from_anywhere(installed: Path, tmp_path: Path) -> None:
    assert "submit" in run(installed, "-m", "penstock", "--help", cwd=tmp_path)
