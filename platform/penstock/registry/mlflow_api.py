"""MLflow's model registry over its REST API: the few calls that the long-living control process and the CLI need.

Importing `mlflow` itself costs about 165 MB; this costs httpx. Source: https://mlflow.org/docs/latest/rest-api.html
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import httpx

from penstock.errors import ModelNotFound, ServiceUnavailable, SettingsError, ValidationFailed
from penstock.settings import MlflowSettings

FOLLOWED_ALIASES: Final = ("champion", "challenger")
_PAGE: Final = 100
_TIMEOUT: Final = httpx.Timeout(10.0, connect=3.0)


@dataclass(frozen=True, slots=True)
class RegistryVersion:
    """A model version; `aliases` is filled by `versions` alone."""

    model_name: str
    number: str
    description: str
    tags: dict[str, str]
    created_milliseconds: int
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RegistryModel:
    """A registered model and the versions that its followed aliases name."""

    name: str
    aliases: dict[str, str]
    followed: dict[str, RegistryVersion] = field(default_factory=dict)


class MlflowApi:
    """A client of one MLflow server. Not for use from several threads at once."""

    def __init__(self, settings: MlflowSettings) -> None:
        if settings.mlflow_tracking_uri is None:
            raise SettingsError("MLFLOW_TRACKING_URI: must name an MLflow server, as http://host:port")
        address = httpx.URL(settings.mlflow_tracking_uri)
        self._shown = str(address.copy_with(userinfo=b""))
        self._http = httpx.Client(base_url=address, timeout=_TIMEOUT, auth=_auth(settings), headers=_headers(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def models(self, between: Callable[[], None] = lambda: None) -> list[RegistryModel]:
        """Every registered model, with the versions that its followed aliases name.

        `between` is called between requests. Raises `ServiceUnavailable` when MLflow does not answer as it should.
        """
        found = []
        for document in self._pages("registered-models/search", "registered_models", {}):
            between()
            found.append(self._with_followed(document, between))
        return found

    def model(self, name: str) -> RegistryModel:
        """The model without its versions. Raises `ModelNotFound`."""
        answer = self.ask("GET", "registered-models/get", params={"name": name})
        return _model(answer["registered_model"])

    def version(self, name: str, number: str) -> RegistryVersion:
        """One version. Raises `ModelNotFound`."""
        answer = self.ask("GET", "model-versions/get", params={"name": name, "version": number})
        return _version(answer["model_version"])

    def versions(self, name: str) -> list[RegistryVersion]:
        """The model's versions, newest first, with their aliases. Raises `ModelNotFound`."""
        aliases = self.model(name).aliases
        quoted = name.replace("'", "''")
        found = [
            _version(document, aliases)
            for document in self._pages("model-versions/search", "model_versions", {"filter": f"name='{quoted}'"})
        ]
        return sorted(found, key=lambda version: int(version.number), reverse=True)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Move the alias to the version. Raises `ModelNotFound` or `ValidationFailed`."""
        self.ask("POST", "registered-models/alias", json={"name": name, "alias": alias, "version": version})

    def set_tag(self, name: str, version: str, key: str, value: str) -> None:
        """Set a tag of a version. Raises `ModelNotFound`."""
        body = {"name": name, "version": version, "key": key, "value": value}
        self.ask("POST", "model-versions/set-tag", json=body)

    def set_webhook(self, url: str, *, secret: str, events: Sequence[tuple[str, str]]) -> None:
        """Have MLflow tell `url` of these events (entity, action), signed; one webhook for a URL, made or made anew.

        Raises `ValidationFailed` where MLflow takes no such URL.
        """
        named = [{"entity": entity, "action": action} for entity, action in events]
        body = {"name": "penstock", "url": url, "events": named, "secret": secret, "status": "ACTIVE"}
        known = next((each for each in self._pages("webhooks", "webhooks", {}) if each["url"] == url), None)
        if known is None:
            self.ask("POST", "webhooks", json=body)
        else:
            self.ask("PATCH", f"webhooks/{known['webhook_id']}", json=body)

    def ping(self) -> None:
        """Raise `ServiceUnavailable` when the registry does not answer."""
        self.ask("GET", "registered-models/search", params={"max_results": 1})

    def _with_followed(self, document: dict[str, Any], between: Callable[[], None]) -> RegistryModel:
        model = _model(document)
        at_hand = {item["version"]: _version(item) for item in document.get("latest_versions", [])}
        followed = {}
        for alias in FOLLOWED_ALIASES:
            if (number := model.aliases.get(alias)) is not None:
                between()
                followed[alias] = at_hand.get(number) or self.version(model.name, number)
        return RegistryModel(model.name, model.aliases, followed)

    def _pages(self, call: str, member: str, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
        page = {"max_results": _PAGE} | query
        while True:
            answer = self.ask("GET", call, params=page)
            yield from answer.get(member, [])
            if not answer.get("next_page_token"):
                return
            page["page_token"] = answer["next_page_token"]

    def ask(self, method: str, call: str, **request: Any) -> dict[str, Any]:
        """One call of MLflow's REST API, such as `runs/create`.

        Raises `ModelNotFound` for what is not there, `ValidationFailed` for what is refused, and `ServiceUnavailable`.
        """
        try:
            answer = self._http.request(method, f"api/2.0/mlflow/{call}", **request)
        except httpx.HTTPError as error:
            raise self._unavailable(str(error) or type(error).__name__) from error
        if answer.status_code in (401, 403):
            raise self._unavailable("it refuses our credentials; set MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN")
        try:
            body = answer.json()
        except ValueError:
            body = None
        if not isinstance(body, dict) or answer.status_code >= 500:
            raise self._unavailable(f"it answered {call} with status {answer.status_code}")
        if answer.is_error:
            raise _refused(body)
        return body

    def _unavailable(self, reason: str) -> ServiceUnavailable:
        return ServiceUnavailable(f"MLflow does not answer at {self._shown} (MLFLOW_TRACKING_URI): {reason}")


def _auth(settings: MlflowSettings) -> tuple[str, str] | None:
    if settings.mlflow_tracking_username is None or settings.mlflow_tracking_password is None:
        return None
    return settings.mlflow_tracking_username, settings.mlflow_tracking_password.get_secret_value()


def _headers(settings: MlflowSettings) -> dict[str, str]:
    if settings.mlflow_tracking_token is None or _auth(settings) is not None:
        return {}
    return {"Authorization": f"Bearer {settings.mlflow_tracking_token.get_secret_value()}"}


def _refused(body: dict[str, Any]) -> ModelNotFound | ValidationFailed:
    message = str(body.get("message", "MLflow refused the request"))
    if body.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
        return ModelNotFound(message, field="model")
    return ValidationFailed(message, field="model")


def _model(document: dict[str, Any]) -> RegistryModel:
    aliases = {entry["alias"]: str(entry["version"]) for entry in document.get("aliases", [])}
    return RegistryModel(document["name"], aliases)


def _version(document: dict[str, Any], aliases: Mapping[str, str] | None = None) -> RegistryVersion:
    number = str(document["version"])
    return RegistryVersion(
        model_name=document["name"],
        number=number,
        description=document.get("description") or "",
        tags={tag["key"]: tag.get("value") or "" for tag in document.get("tags", [])},
        created_milliseconds=int(document.get("creation_timestamp", 0)),
        aliases=tuple(sorted(alias for alias, named in (aliases or {}).items() if named == number)),
    )
