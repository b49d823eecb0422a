"""Registering a model folder in MLflow: the folder stays where it is, MLflow keeps what it is.

Each version is an external LoggedModel (MLflow holds its name, not its bytes) and a model version whose tags say where
the folder is and what every file's SHA-256 is. The library `mlflow` is imported here and in `runs` alone, and only when
it is called.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from penstock.errors import ModelNotFound, ServiceUnavailable, ValidationFailed
from penstock.registry.folder import ModelFolder
from penstock.registry.mlflow_api import MlflowApi, RegistryVersion
from penstock.registry.version_tags import DIGEST_TAG, SOURCE_TAG, to_tags
from penstock.settings import MlflowSettings

EXPERIMENT: Final = "penstock"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ALIAS: Final = re.compile(r"(?!v?\d+$|latest$)[A-Za-z0-9_-]{1,64}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Registered:
    """The version that a folder is now. `created` is False when its files were registered before, from `source`."""

    version: str
    source: str
    created: bool


def check_name(name: str) -> str:
    """The name, if a model may have it. Raises `ValidationFailed`."""
    if not _NAME.fullmatch(name):
        raise ValidationFailed(
            f"{name!r} is no name for a model: use up to 128 letters, digits, dots, dashes and underscores, "
            "a letter or digit first",
            field="name",
        )
    return name


def check_alias(alias: str) -> str:
    """The alias, if a version may have it. Raises `ValidationFailed`."""
    if not _ALIAS.fullmatch(alias):
        raise ValidationFailed(
            f"{alias!r} is no alias: letters, digits, dashes and underscores, but not a version number or `latest`",
            field="alias",
        )
    return alias


def register(
    settings: MlflowSettings,
    folder: ModelFolder,
    name: str,
    *,
    alias: str | None = None,
    description: str | None = None,
    force: bool = False,
    tags: Mapping[str, str] = MappingProxyType({}),
    run_id: str | None = None,
) -> Registered:
    """Make the folder a version of the model, unless the same files are one already (`force` makes one all the same).

    A new one has `tags` beside those that say what it is, and comes from the run `run_id`. Then move the alias to it.
    Raises `ServiceUnavailable` when MLflow does not answer.
    """
    check_name(name)
    with MlflowApi(settings) as api:
        known = None if force else _same_files(api, name, folder.digest)
        if known is None:
            known = api.version(name, _create(settings, folder, name, description, tags, run_id))
            registered = Registered(known.number, str(folder.path), created=True)
        else:
            registered = Registered(known.number, known.tags.get(SOURCE_TAG, ""), created=False)
        if alias is not None:
            api.set_alias(name, check_alias(alias), registered.version)
    return registered


def _same_files(api: MlflowApi, name: str, digest: str) -> RegistryVersion | None:
    try:
        versions = api.versions(name)
    except ModelNotFound:
        return None
    return next((version for version in versions if version.tags.get(DIGEST_TAG) == digest), None)


def _create(
    settings: MlflowSettings,
    folder: ModelFolder,
    name: str,
    description: str | None,
    tags: Mapping[str, str],
    run_id: str | None,
) -> str:
    """A new version; answers with its number."""
    import mlflow  # here, for it costs a second and 165 MB

    with typed_errors(mlflow.MlflowException), silence():
        mlflow.set_tracking_uri(settings.mlflow_tracking_uri)
        logged = mlflow.create_external_model(
            name=name,
            params=_params(folder),
            tags={DIGEST_TAG: folder.digest, SOURCE_TAG: str(folder.path), **tags},
            experiment_id=experiment_id(mlflow.MlflowClient()),
            source_run_id=run_id,
        )
        version = mlflow.register_model(f"models:/{logged.model_id}", name, tags={**to_tags(folder), **tags})
        if description:
            mlflow.MlflowClient().update_model_version(name, version.version, description)
    return str(version.version)


def _params(folder: ModelFolder) -> dict[str, str]:
    return {
        "architecture": folder.architecture,
        "context_length": str(folder.context_length),
        "dtype": folder.dtype,
        "scheme": str(folder.recipe["scheme"]),
    }


def experiment_id(client: Any) -> str:
    """The experiment that holds our models; MLflow's default one may have been deleted."""
    found = client.get_experiment_by_name(EXPERIMENT)
    return str(found.experiment_id) if found is not None else str(client.create_experiment(EXPERIMENT))


@contextlib.contextmanager
def typed_errors(failure: type[Exception]) -> Iterator[None]:
    """What MLflow's library raises, as ours."""
    try:
        yield
    except failure as error:
        if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
            raise ValidationFailed(f"MLflow refuses it: {error}", field="model") from error
        raise ServiceUnavailable(f"MLflow (MLFLOW_TRACKING_URI) could not register the model: {error}") from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """MLflow tells its progress on standard error; ours is told by the command."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
