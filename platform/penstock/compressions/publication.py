"""One job's result in MLflow: `python -m penstock.compressions.publication`, a process of its own.

MLflow's library takes seconds and 165 MB, and answers to one server for a whole process: the control process, which
lives long, starts this where there is something to publish. It reads a `Publication` as JSON from its standard input
and writes one line: what came of it, or the error. Doing it again changes nothing: the run is found by its job, the
version by its files.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr

from penstock.errors import ModelFolderInvalid, PenstockError
from penstock.registry.folder import describe
from penstock.registry.registration import Registered, register
from penstock.registry.runs import JOB_TAG, RunFacts, VersionRun
from penstock.settings import MlflowSettings

PARENT_TAG = "penstock.parent"


@dataclass(frozen=True, slots=True)
class Publication:
    """What is published: the `folder` that was made as a version of `name`, or (None) figures of the one there is."""

    job_id: str
    name: str
    version: str
    """Of what was judged; of a folder, the version that it was made of."""
    folder: str | None
    parameters: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    parent: str = ""
    alias: str | None = None

    def with_settings(self, settings: MlflowSettings) -> bytes:
        """All that the process needs."""
        return json.dumps({"publication": asdict(self), "mlflow": _plain(settings)}).encode()

    @classmethod
    def read(cls, sent: bytes) -> tuple[Self, MlflowSettings]:
        """What `with_settings` made."""
        told = json.loads(sent)
        return cls(**told["publication"]), MlflowSettings(**told["mlflow"])


def publish(settings: MlflowSettings, publication: Publication) -> dict[str, Any]:
    """Register and log it; the version's number, whether it is new, its folder, and the run's id.

    Raises `ServiceUnavailable` when MLflow does not answer, `ModelFolderInvalid` and `ValidationFailed` for what no
    other attempt would mend.
    """
    run = VersionRun(settings, publication.job_id)
    facts = RunFacts(_title(publication), publication.parameters, publication.figures)
    registered = _registered(settings, publication, run.id)
    version = registered.version if registered is not None else publication.version
    run.finish((publication.name, version), facts, made=registered is not None and registered.created)
    return {
        "version": version,
        "created": registered is not None and registered.created,
        "source": registered.source if registered is not None else None,
        "run_id": run.id,
    }


def main() -> None:
    """Publish what the standard input names."""
    publication, settings = Publication.read(sys.stdin.buffer.read())
    try:
        told = publish(settings, publication)
    except PenstockError as error:
        told = {"error": {"code": error.code, "message": error.message}, "passing": error.status == 503}
    sys.stdout.write(f"{json.dumps(told)}\n")


def _registered(settings: MlflowSettings, publication: Publication, run_id: str) -> Registered | None:
    if publication.folder is None:
        return None
    folder = Path(publication.folder)
    if not folder.is_dir():
        raise ModelFolderInvalid(f"{folder} is not there; control processes must reach PENSTOCK_MODELS_FOLDER too")
    return register(
        settings,
        describe(folder),
        publication.name,
        alias=publication.alias,
        description=_title(publication),
        tags={JOB_TAG: publication.job_id, PARENT_TAG: publication.parent},
        run_id=run_id,
    )


def _title(publication: Publication) -> str:
    recipe = publication.parameters
    if publication.folder is None:
        return f"{publication.name}:{publication.version} against {publication.parent}"
    return f"{publication.parent} in {recipe.get('scheme')} by {recipe.get('method')}"


def _plain(settings: MlflowSettings) -> dict[str, Any]:
    values = settings.model_dump(include=set(MlflowSettings.model_fields))
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in values.items()
        if value is not None
    }


if __name__ == "__main__":
    main()
