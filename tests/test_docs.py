"""What the documents list is what the code has: settings, environment of the container files, error codes, events."""

import re

import pytest
import yaml
from penstock import errors
from penstock.auth.audit import Action
from penstock.jobs.events import EventType
from penstock.rollouts.events import ChampionEvent, RolloutEvent
from penstock.settings import Settings, variable_name
from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from tests.conftest import ROOT


def setting_row(field: str) -> str:
    """The row of docs/configuration.md that a setting must have."""
    info = Settings.model_fields[field]
    default = info.default
    if default is PydanticUndefined:
        shown = "required"
    elif default is None or (isinstance(default, SecretStr) and not default.get_secret_value()):
        shown = ""
    else:
        shown = f"`{default}`"
    return f"| `{variable_name(field)}` | {shown} | {info.description} |"


@pytest.mark.parametrize("field", list(Settings.model_fields))
def test_every_setting_is_documented(field: str) -> None:
    assert setting_row(field) in (ROOT / "docs/configuration.md").read_text()


def test_no_setting_is_documented_that_does_not_exist() -> None:
    outside_the_servers = {"PENSTOCK_URL", "PENSTOCK_API_KEY", "PENSTOCK_STATE_DIR"}
    known = {variable_name(field) for field in Settings.model_fields} | outside_the_servers
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        named = set(re.findall(r"\b(?:PENSTOCK_[A-Z_]+|MLFLOW_TRACKING_URI)\b", document.read_text()))
        assert named <= known, document.name


def test_containers_set_only_what_exists() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    known = {variable_name(field) for field in Settings.model_fields}
    for name in ("web", "control", "worker", "worker-gpu", "migrate"):
        service = compose["services"][name]
        assert set(service["environment"]) <= known, name
        assert {"PENSTOCK_DATABASE_URL", "PENSTOCK_REDIS_URL"} <= set(service["environment"]), name


def error_kinds() -> dict[str, type[errors.PenstockError]]:
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    return {name: kind for name, kind in kinds.items() if issubclass(kind, errors.PenstockError)}


def error_codes() -> set[str]:
    return {kind.code for kind in error_kinds().values() if kind.status != 500}


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    branch = ["PenstockError"]
    drawn = set(branch)
    for indent, name in re.findall(r"^([│ ]*)[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE):
        depth = len(indent) // 4 + 1
        branch[depth:] = [name]
        assert getattr(errors, name).__base__.__name__ == branch[depth - 1], name
        drawn.add(name)
    assert drawn == set(error_kinds())


def test_every_error_event_and_action_that_clients_meet_is_documented() -> None:
    text = (ROOT / "docs/api.md").read_text()
    events = {*EventType, *RolloutEvent, *ChampionEvent}
    missing = {name for name in error_codes() | events | set(Action) if f"`{name}`" not in text}
    assert not missing
