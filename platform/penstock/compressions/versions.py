"""Which files a job works on: a version that the platform knows, or else one that only MLflow does."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.errors import ModelFolderInvalid, ModelNotFound, ValidationFailed
from penstock.registry.mlflow_api import MlflowApi, RegistryVersion
from penstock.registry.models import LANE_ID, Deployment, RoutingPolicy
from penstock.registry.version_tags import from_tags
from penstock.settings import MlflowSettings

UNCOMPRESSED = "none"


@dataclass(frozen=True, slots=True)
class FiledVersion:
    """A model version: its folder `source`, each file's SHA-256, and the `scheme` in which it is compressed."""

    name: str
    version: str
    source: str
    manifest: dict[str, str]
    scheme: str

    @property
    def spelled(self) -> str:
        """As jobs ask for it: `name:version`."""
        return f"{self.name}:{self.version}"

    def as_row(self) -> dict[str, Any]:
        """As the table keeps it."""
        return asdict(self)

    @classmethod
    def from_row(cls, kept: dict[str, Any]) -> Self:
        """As the table kept it."""
        return cls(**kept)


def find(session: Session, model: str) -> FiledVersion | None:
    """What `name`, `name@alias` or `name:version` means, as far as the database knows: no engine need have it."""
    name, version, alias = _parts(model)
    found = _numbered(session, name, version) if version else _aliased(session, name, alias)
    if found is None:
        return None
    return FiledVersion(
        found.model_name, found.model_version, found.source, dict(found.manifest), str(found.recipe.get("scheme"))
    )


def ask(settings: MlflowSettings, model: str, *, field: str = "model") -> FiledVersion:
    """The same as MLflow knows it: versions that no alias ever named, and other aliases.

    Raises `ModelNotFound`, `ServiceUnavailable` when MLflow does not answer, and `ValidationFailed` for a version that
    was not registered by us.
    """
    if settings.mlflow_tracking_uri is None:
        raise ModelNotFound(f"no version {model!r} is known here, and MLFLOW_TRACKING_URI is not set", field=field)
    with MlflowApi(settings) as api:
        try:
            return _filed(_registered(api, model), field)
        except ModelNotFound as error:
            raise ModelNotFound(f"no version {model!r}: {error.message}", field=field) from None


def _parts(model: str) -> tuple[str, str, str]:
    """Name, version (empty where an alias is meant) and alias."""
    if ":" in model:
        name, _, version = model.partition(":")
        return name, version, ""
    name, _, alias = model.partition("@")
    return name, "", alias or "champion"


def _numbered(session: Session, name: str, version: str) -> Deployment | None:
    newest = select(Deployment).where(Deployment.model_name == name, Deployment.model_version == version)
    newest = newest.where(Deployment.id != LANE_ID).order_by(Deployment.created_at.desc(), Deployment.id.desc())
    return session.scalars(newest.limit(1)).one_or_none()


def _aliased(session: Session, name: str, alias: str) -> Deployment | None:
    policy = session.get(RoutingPolicy, name)
    chosen = {"champion": policy.champion_id, "challenger": policy.challenger_id}.get(alias) if policy else None
    return session.get(Deployment, chosen) if chosen is not None else None


def _registered(api: MlflowApi, model: str) -> RegistryVersion:
    name, version, alias = _parts(model)
    if not version:
        aliases = api.model(name).aliases
        if alias not in aliases:
            raise ModelNotFound(f"the model has no alias {alias!r}")
        version = aliases[alias]
    return api.version(name, version)


def _filed(registered: RegistryVersion, field: str) -> FiledVersion:
    try:
        facts = from_tags(registered.tags)
    except ModelFolderInvalid as error:
        raise ValidationFailed(f"version {registered.number} cannot be used: {error.message}", field=field) from None
    scheme = str(facts.recipe.get("scheme"))
    return FiledVersion(registered.model_name, registered.number, str(facts.source), facts.manifest, scheme)
