"""Registering folders in a real MLflow: once per content, with everything that a worker needs to check them."""

from pathlib import Path

import httpx
import pytest
from penstock.errors import ServiceUnavailable, ValidationFailed
from penstock.registry.folder import describe
from penstock.registry.mlflow_api import MlflowApi
from penstock.registry.registration import Registered, check_alias, check_name, register
from penstock.registry.version_tags import from_tags
from penstock.settings import MlflowSettings, Settings

from tests.platform.registry.conftest import Registrar
from tests.platform.registry.model_folders import make_folder


def test_a_version_carries_what_a_worker_checks(tmp_path: Path, registry_settings: Settings, mlflow: MlflowApi) -> None:
    folder = describe(make_folder(tmp_path / "model"))
    done = register(registry_settings, folder, "tiny", alias="champion", description="the first")
    assert done == Registered("1", str(folder.path), created=True)
    (model,) = mlflow.models()
    version = model.followed["champion"]
    facts = from_tags(version.tags)
    assert (facts.source, facts.manifest, facts.recipe) == (folder.path, folder.manifest, folder.recipe)
    assert version.tags["penstock.architecture"] == "LlamaForCausalLM"
    assert mlflow.versions("tiny")[0].description == "the first"


def test_the_version_is_linked_to_a_logged_model(tmp_path: Path, registry_settings: Settings) -> None:
    register(registry_settings, describe(make_folder(tmp_path / "model")), "tiny")
    with httpx.Client(base_url=f"{registry_settings.mlflow_tracking_uri}/api/2.0/mlflow/") as http:
        version = http.get("model-versions/get", params={"name": "tiny", "version": "1"}).json()["model_version"]
        logged = http.get(f"logged-models/{version['source'].removeprefix('models:/')}").json()["model"]
    params = {entry["key"]: entry["value"] for entry in logged["data"]["params"]}
    assert params == {
        "architecture": "LlamaForCausalLM",
        "context_length": "512",
        "dtype": "bfloat16",
        "scheme": "none",
    }


def test_the_same_files_are_one_version_wherever_they_are(
    tmp_path: Path, registry_settings: Settings, mlflow: MlflowApi
) -> None:
    first = describe(make_folder(tmp_path / "model"))
    twin = describe(make_folder(tmp_path / "twin"))
    register(registry_settings, first, "tiny")
    assert register(registry_settings, first, "tiny") == Registered("1", str(first.path), created=False)
    again = register(registry_settings, twin, "tiny", alias="champion")
    assert again == Registered("1", str(first.path), created=False)
    assert len(mlflow.versions("tiny")) == 1
    assert mlflow.model("tiny").aliases == {"champion": "1"}


def test_force_makes_a_version_all_the_same(tmp_path: Path, registry_settings: Settings) -> None:
    folder = describe(make_folder(tmp_path / "model"))
    register(registry_settings, folder, "tiny")
    assert register(registry_settings, folder, "tiny", force=True).version == "2"
    assert register(registry_settings, folder, "other").version == "1"


def test_hundreds_of_files_fit(tmp_path: Path, registry_settings: Settings, mlflow: MlflowApi) -> None:
    path = make_folder(tmp_path / "model")
    (path / "notes").mkdir()
    for number in range(400):
        (path / "notes" / f"{number:0200}.md").touch()
    folder = describe(path)
    register(registry_settings, folder, "tiny", alias="champion")
    assert from_tags(mlflow.models()[0].followed["champion"].tags).manifest == folder.manifest


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:1", "a@b", "-a", "x" * 129, "naïve", "a\n"])
def test_a_name_that_jobs_could_not_ask_for_is_refused(name: str) -> None:
    with pytest.raises(ValidationFailed, match="is no name for a model") as caught:
        check_name(name)
    assert caught.value.field == "name"


@pytest.mark.parametrize("alias", ["", "1", "v1", "V22", "latest", "Latest", "a b", "a:b", "x" * 65])
def test_an_alias_that_mlflow_would_not_take_is_refused(alias: str) -> None:
    with pytest.raises(ValidationFailed, match="is no alias") as caught:
        check_alias(alias)
    assert caught.value.field == "alias"


@pytest.mark.parametrize("alias", ["champion", "challenger", "v1-beta", "2024_best"])
def test_other_aliases_are_fine(alias: str, registrar: Registrar, mlflow: MlflowApi) -> None:
    registrar(alias=alias)
    assert mlflow.model("tiny").aliases == {alias: "1"}


def test_a_registry_that_does_not_answer_is_named(tmp_path: Path) -> None:
    settings = MlflowSettings(mlflow_tracking_uri="http://127.0.0.1:1")
    with pytest.raises(ServiceUnavailable, match=r"http://127\.0\.0\.1:1 \(MLFLOW_TRACKING_URI\)"):
        register(settings, describe(make_folder(tmp_path / "model")), "tiny")
