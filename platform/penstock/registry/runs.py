"""Figures of a model version as an MLflow run, linked to the version both ways. Imports `mlflow` when it is called."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from penstock.registry.registration import experiment_id, silence, typed_errors
from penstock.registry.version_tags import DIGEST_TAG
from penstock.settings import MlflowSettings

JOB_TAG: Final = "penstock.job"
_LONGEST_PARAMETER: Final = 6000


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run tells: `parameters` by name, `figures` as nested objects whose numbers become metrics."""

    name: str
    parameters: Mapping[str, Any]
    figures: Mapping[str, Any]


class VersionRun:
    """The run of one job: found by the job's tag, or begun. Whoever is at it again does nothing twice."""

    def __init__(self, settings: MlflowSettings, job_id: str) -> None:
        import mlflow

        with typed_errors(mlflow.MlflowException), silence():
            self._failure = mlflow.MlflowException
            self._client = mlflow.MlflowClient(settings.mlflow_tracking_uri)
            self._experiment = experiment_id(self._client)
            found = self._client.search_runs([self._experiment], f"tags.`{JOB_TAG}` = '{job_id}'", max_results=1)
            self._run = found[0] if found else self._begin(job_id)

    @property
    def id(self) -> str:
        return str(self._run.info.run_id)

    def finish(self, model: tuple[str, str], facts: RunFacts, *, made: bool) -> None:
        """Tell the facts and link the version `model` (name and number), which the run made, or else judged.

        Raises `ServiceUnavailable` when MLflow does not answer.
        """
        with typed_errors(self._failure), silence():
            if self._run.info.status == "FINISHED":
                return
            model_id = self._logged_model(*model)
            if model_id is not None:
                self._link(model_id, made)
            self._tell(facts, model_id)
            self._client.set_terminated(self.id)

    def _begin(self, job_id: str) -> Any:
        return self._client.create_run(self._experiment, tags={JOB_TAG: job_id}, run_name=job_id)

    def _logged_model(self, name: str, version: str) -> str | None:
        """The id of the version's logged model, found by its files: MLflow's registry does not tell it."""
        digest = self._client.get_model_version(name, version).tags.get(DIGEST_TAG, "")
        found = self._client.search_logged_models(
            [self._experiment], f"tags.`{DIGEST_TAG}` = '{digest}' AND name = '{name}'", max_results=1
        )
        return str(found[0].model_id) if found else None

    def _link(self, model_id: str, made: bool) -> None:
        from mlflow.entities import LoggedModelInput, LoggedModelOutput

        if made:
            self._client.log_outputs(self.id, [LoggedModelOutput(model_id, step=0)])
        else:
            self._client.log_inputs(self.id, models=[LoggedModelInput(model_id)])

    def _tell(self, facts: RunFacts, model_id: str | None) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step=0, model_id=model_id, run_id=self.id)
            for name, value in numbers_in(facts.figures)
        ]
        parameters = [
            Param(name, str(value)[:_LONGEST_PARAMETER])
            for name, value in facts.parameters.items()
            if value is not None
        ]
        self._client.log_batch(self.id, metrics, parameters, [RunTag("mlflow.runName", facts.name)])


def numbers_in(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested objects, named by its path with dots."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from numbers_in(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, float(value)
