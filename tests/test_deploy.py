"""What can be known of the containers without running them: what they name is there, and they get what they need."""

import re
import tomllib
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from penstock.cli import main
from penstock.settings import Settings

from tests.conftest import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "penstock"}
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Named volumes, by where they are mounted."""
    pairs = [volume.split(":") for volume in service.get("volumes", [])]
    return {pair[1]: pair[0] for pair in pairs if not pair[0].startswith(".")}


@pytest.mark.parametrize("name", [name for name in OURS if name != "mlflow"])
def test_each_process_is_a_command_that_exists(name: str) -> None:
    answer = CliRunner().invoke(main, [*OURS[name]["command"], "--help"])
    assert answer.exit_code == 0, answer.output


def test_who_waits_for_a_healthy_service_can_know_that_it_is() -> None:
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other]
            else:
                assert SERVICES[other]["restart"] == "no"


def test_the_server_that_makes_the_databases_does_not_pass_for_the_one_that_serves_them() -> None:
    """While it runs `initdb`'s scripts PostgreSQL's image starts one that listens on its socket alone."""
    assert "-h 127.0.0.1" in SERVICES["postgres"]["healthcheck"]["test"][1]


def test_volumes_are_declared_and_belong_to_whom_they_are_for() -> None:
    made = re.search(r"install --directory --owner penstock (.+)", DOCKERFILE)
    assert made is not None
    for name, service in SERVICES.items():
        assert set(mounts(service).values()) <= set(COMPOSE["volumes"]), name
        if name in OURS:
            assert set(mounts(service)) <= set(made[1].split()), name


def test_a_worker_is_given_the_time_that_it_takes_to_stop() -> None:
    drain = Settings.model_fields["worker_drain_seconds"].default
    attempt = Settings.model_fields["webhook_timeout_seconds"].default
    for name in ("web", "control", "worker", "worker-gpu"):
        given = float(SERVICES[name]["stop_grace_period"].removesuffix("s"))
        assert given > drain + 10
        assert given > attempt + 10


def test_the_image_has_every_folder_that_the_package_is_built_of() -> None:
    copied = {line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ") and "." not in line}
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {source.split("/")[0] for source in [*wheel["packages"], *wheel["force-include"]]}
    assert wanted <= copied
    for source in re.findall(r"^COPY ([^/\n]+) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((ROOT / each).exists() for each in source.split()), source


def test_the_image_installs_extras_that_exist() -> None:
    extras = re.search(r"^ARG EXTRAS=(.+)$", DOCKERFILE, re.MULTILINE)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(PROJECT["project"]["optional-dependencies"])
