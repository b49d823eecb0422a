"""Our REST client against a real MLflow server."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from penstock.errors import ModelNotFound, ServiceUnavailable, SettingsError, ValidationFailed
from penstock.registry import mlflow_api
from penstock.registry.mlflow_api import MlflowApi
from penstock.settings import MlflowSettings, Settings
from pydantic import SecretStr

from tests.platform.registry.conftest import Registrar


def test_an_empty_registry_has_no_models(mlflow: MlflowApi) -> None:
    assert mlflow.models() == []
    mlflow.ping()


def test_models_come_with_the_versions_that_followed_aliases_name(mlflow: MlflowApi, registrar: Registrar) -> None:
    registrar(alias="champion")
    registrar(alias="challenger")
    registrar(alias="other")
    registrar("second")
    tiny, second = sorted(mlflow.models(), key=lambda model: model.name, reverse=True)
    assert tiny.aliases == {"champion": "1", "challenger": "2", "other": "3"}
    assert {alias: version.number for alias, version in tiny.followed.items()} == {"champion": "1", "challenger": "2"}
    assert all("penstock.manifest" in version.tags for version in tiny.followed.values())
    assert (second.aliases, second.followed) == ({}, {})


def test_pages_are_read_to_the_end(mlflow: MlflowApi, registrar: Registrar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_api, "_PAGE", 2)
    names = {f"model-{number}" for number in range(5)}
    for name in names:
        registrar.ask("POST", "registered-models/create", name=name).raise_for_status()
    calls: list[int] = []
    assert {model.name for model in mlflow.models(between=lambda: calls.append(1))} == names
    assert len(calls) == len(names)


def test_versions_come_newest_first_with_their_aliases(mlflow: MlflowApi, registrar: Registrar) -> None:
    for _ in range(10):
        registrar()
    mlflow.set_alias("tiny", "champion", "2")
    mlflow.set_alias("tiny", "best", "2")
    versions = mlflow.versions("tiny")
    assert [version.number for version in versions] == [str(number) for number in range(10, 0, -1)]
    assert [version.aliases for version in versions if version.aliases] == [("best", "champion")]


def test_what_is_not_there_is_a_typed_error(mlflow: MlflowApi, registrar: Registrar) -> None:
    with pytest.raises(ModelNotFound, match="nowhere"):
        mlflow.versions("nowhere")
    with pytest.raises(ModelNotFound, match="nowhere"):
        mlflow.set_alias("nowhere", "champion", "1")
    registrar()
    with pytest.raises(ModelNotFound, match="9"):
        mlflow.set_alias("tiny", "champion", "9")
    with pytest.raises(ValidationFailed, match="latest"):
        mlflow.set_alias("tiny", "latest", "1")


def test_a_name_cannot_break_out_of_its_filter(mlflow: MlflowApi, registrar: Registrar) -> None:
    registrar()
    with pytest.raises(ModelNotFound):
        mlflow.versions("x' OR name='tiny")


def test_without_an_address_the_variable_is_named(registry_settings: Settings) -> None:
    with pytest.raises(SettingsError, match="MLFLOW_TRACKING_URI"):
        MlflowApi(registry_settings.model_copy(update={"mlflow_tracking_uri": None}))


def test_a_closed_port_is_named_without_its_password() -> None:
    settings = MlflowSettings(mlflow_tracking_uri="http://someone:secret@127.0.0.1:1")
    with (
        MlflowApi(settings) as api,
        pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:1.*MLFLOW_TRACKING_URI") as caught,
    ):
        api.ping()
    assert "secret" not in caught.value.message


class Stranger(http.server.BaseHTTPRequestHandler):
    """Not MLflow: keeps what it was sent and answers as it was told."""

    status, body = 200, b"hello"
    authorizations: list[str | None] = []  # noqa: RUF012 - one server at a time

    def do_GET(self) -> None:
        self.authorizations.append(self.headers.get("Authorization"))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def stranger(status: int, body: bytes = b"hello") -> Iterator[str]:
    handler = type("Handler", (Stranger,), {"status": status, "body": body, "authorizations": Stranger.authorizations})
    Stranger.authorizations.clear()
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"hello", "answered registered-models/search with status 200"),
        (200, b"[]", "with status 200"),
        (502, b"{}", "with status 502"),
        (404, b"<html>", "with status 404"),
        (401, b"", "refuses our credentials; set MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_a_server_that_is_not_mlflow_is_said_to_be_none(status: int, body: bytes, message: str) -> None:
    with (
        stranger(status, body) as url,
        MlflowApi(MlflowSettings(mlflow_tracking_uri=url)) as api,
        pytest.raises(ServiceUnavailable, match=message),
    ):
        api.ping()


@pytest.mark.parametrize(
    ("credentials", "header"),
    [
        ({"mlflow_tracking_username": "me", "mlflow_tracking_password": SecretStr("pass")}, "Basic bWU6cGFzcw=="),
        ({"mlflow_tracking_token": SecretStr("token")}, "Bearer token"),
        ({}, None),
    ],
)
def test_credentials_are_sent(credentials: dict[str, object], header: str | None) -> None:
    with stranger(200, b"{}") as url:
        settings = MlflowSettings.model_validate({"mlflow_tracking_uri": url} | credentials)
        with MlflowApi(settings) as api:
            api.ping()
    assert Stranger.authorizations == [header]
