"""The one place where the environment is read: a frozen `Settings`, made once at start-up.

Each field is set by the variable `PENSTOCK_<FIELD>`, except that `mlflow_tracking_...` is set by MLflow's own
`MLFLOW_TRACKING_...`. A bad value stops the process at start-up with a `SettingsError` that names the variable.
"""

from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from penstock.errors import SettingsError

_PREFIX = "PENSTOCK_"


def _named_by_mlflow(field: str, description: str) -> Any:
    return Field(default=None, validation_alias=AliasChoices(field.upper(), field), description=description)


class MlflowSettings(BaseSettings):
    """Where MLflow is and how to sign in there: all that registering a model needs."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore")

    mlflow_tracking_uri: str | None = _named_by_mlflow(
        "mlflow_tracking_uri",
        "The MLflow server whose registry names the model versions; without it no model is synchronised",
    )
    mlflow_tracking_username: str | None = _named_by_mlflow("mlflow_tracking_username", "User name for MLflow")
    mlflow_tracking_password: SecretStr | None = _named_by_mlflow("mlflow_tracking_password", "Password for MLflow")
    mlflow_tracking_token: SecretStr | None = _named_by_mlflow(
        "mlflow_tracking_token", "Bearer token for MLflow, instead of a user name and password"
    )

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _must_be_a_server(cls, uri: str | None) -> str | None:
        if uri is not None and not uri.startswith(("http://", "https://")):
            raise ValueError("must be an MLflow server's address: http://host:port")
        return uri

    @classmethod
    def from_environment(cls, **known: Any) -> Self:
        """Settings as the environment gives them, except for what is `known` already.

        Raises `SettingsError` naming every variable that is wrong.
        """
        try:
            return cls(**known)
        except ValidationError as error:
            raise SettingsError(
                "; ".join(_explain(problem["loc"], problem["msg"]) for problem in error.errors())
            ) from None


class Settings(MlflowSettings):
    """Everything that the environment decides. Durations are seconds, sizes are bytes."""

    # Services
    database_url: SecretStr = Field(description="PostgreSQL, as postgresql://user:password@host:port/name")
    redis_url: SecretStr = Field(description="Redis, as redis://:password@host:port/0")
    database_pool_size: int = Field(default=8, ge=1, le=200, description="Connections that one process keeps")
    database_wait_seconds: float = Field(
        default=10.0, gt=0, description="How long a request waits for one of them, before it is refused with 503"
    )

    # Web
    secret_key: SecretStr = Field(
        default=SecretStr(""),
        description="Signs the portal's session cookies; `penstock up` makes one and keeps it",
    )
    environment: str = Field(
        default="live",
        pattern=r"^[a-z0-9]{1,12}$",
        description="The second part of every API key: psk_<environment>_...",
    )
    web_host: str = Field(default="127.0.0.1", description="Address that the web process listens on")
    web_port: int = Field(default=8080, ge=1, le=65535, description="Port that the web process listens on")
    web_threads: int = Field(
        default=256,
        ge=2,
        le=2000,
        description="Requests and streams that one web process serves at once; three quarters may be streams",
    )
    public_url: str | None = Field(
        default=None, description="How clients reach the web process, where a proxy stands before it"
    )
    proxies: int = Field(
        default=0,
        ge=0,
        le=10,
        description="How many proxies stand before the web process: so many of X-Forwarded-For's addresses are trusted",
    )
    secure_cookies: bool = Field(default=False, description="Send session cookies over HTTPS alone")
    oidc_issuer: str | None = Field(
        default=None,
        pattern=r"^(https://|http://(127\.0\.0\.1|localhost|\[::1\])[:/]).*",
        description="The OpenID Connect provider through which people may sign in, as its issuer's https:// address",
    )
    oidc_client_id: str | None = Field(default=None, description="What the provider knows this installation as")
    oidc_client_secret: SecretStr | None = Field(default=None, description="The secret that goes with it")
    oidc_name: str = Field(default="single sign-on", description="What the sign-in page calls the provider")
    oidc_tenant: str | None = Field(
        default=None,
        description="The tenant whose members people become at their first sign-in through the provider; "
        "without it only who was let in before gets in",
    )
    max_body_bytes: int = Field(default=1_048_576, ge=1024, description="Largest request body that is accepted")
    max_queued_jobs: int = Field(default=100_000, ge=1, description="Jobs that one tenant may have waiting")

    requests_per_minute: int | None = Field(
        default=None, ge=1, description="Requests that one tenant may send to the API in a minute; no limit without it"
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Tokens that the jobs which one tenant submits in a minute may use; no limit without it",
    )
    max_open_streams: int | None = Field(
        default=None, ge=1, description="Streams that one tenant may have open at once; no limit without it"
    )
    idempotency_seconds: int = Field(
        default=86_400, ge=60, description="How long a request sent again with its Idempotency-Key makes no second job"
    )

    # Job path
    lease_seconds: float = Field(
        default=15.0, ge=0.5, description="How long a worker may stay silent before its jobs are taken back"
    )
    sweep_seconds: float = Field(
        default=1.0, gt=0, description="How often lost leases and unrung doorbells are looked for"
    )
    checkpoint_seconds: float = Field(
        default=1.0, gt=0, description="How often running jobs' tokens are copied to PostgreSQL"
    )
    journal_linger_seconds: int = Field(
        default=600, ge=0, description="How long a finished job's tokens stay in Redis for live readers"
    )
    max_own_crashes: int = Field(
        default=3, ge=1, description="Engine crashes while running alone after which a job is given up"
    )

    # Files and batches
    files_url: str | None = Field(
        default=None,
        description="Where files are kept: a folder, or an address that fsspec knows, such as s3://bucket/folder; "
        "`files` in the state folder without it",
    )
    max_file_bytes: int = Field(default=209_715_200, ge=1024, description="Largest file that is accepted")
    batch_max_lines: int = Field(default=50_000, ge=1, description="Lines that a batch may have")
    batch_waiting_jobs: int = Field(default=1000, ge=1, description="Jobs that one batch has waiting at any time")

    # Retention
    retain_jobs_days: int | None = Field(
        default=None, ge=1, description="How long finished jobs and batches are kept; for good without it"
    )
    retain_events_days: int | None = Field(
        default=None, ge=1, description="How long the events of tenants' feeds are kept; for good without it"
    )
    retain_deliveries_days: int | None = Field(
        default=None, ge=1, description="How long deliveries of webhooks that have ended are kept; for good without it"
    )
    retain_files_days: int | None = Field(
        default=None, ge=1, description="How long files are kept; for good without it"
    )
    retain_usage_days: int | None = Field(
        default=None,
        ge=1,
        description="How long usage is kept job by job; older usage is kept by the day. Without it only that of "
        "deleted jobs is",
    )
    retention_sweep_seconds: float = Field(
        default=30.0, gt=0, description="How often what is past its time is looked for, and tenants that are erased"
    )

    # Worker
    worker_slots: int = Field(default=256, ge=1, le=4096, description="Jobs that one worker runs at once")
    worker_device: str = Field(default="auto", description="auto, cpu or cuda[:N]: where the engine computes")
    worker_models: str = Field(
        default="*", description="Names of the models that a worker hosts, separated by commas; * is all"
    )
    worker_labels: str = Field(
        default="",
        description="Names by which deployments may ask for this worker beside its host's, separated by commas",
    )
    worker_memory_bytes: int | None = Field(
        default=None,
        ge=1,
        description="What all engines of one worker may take of its device; what is free when they load without it",
    )
    worker_drain_seconds: float = Field(
        default=10.0,
        ge=0,
        description="How long a stopping worker lets its jobs finish before it hands them back",
    )
    compressions: int = Field(
        default=1,
        ge=0,
        le=16,
        description="Jobs that quantize or evaluate which one worker does at once, beside its slots; 0 is none",
    )
    models_folder: str | None = Field(
        default=None,
        description="Folder in which quantized versions of models are made and kept, which every worker and control "
        "process must reach; `models` in the state folder without it",
    )
    engine_threads: int | None = Field(
        default=None, ge=1, description="Threads of one CPU engine; all cores without it"
    )
    engine_kv_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Memory for K and V on a worker's device, divided among the versions there; measured without it",
    )
    engine_quantization: Literal["int8", "int4", "fp8"] | None = Field(
        default=None,
        description="Weights are rounded to so many bits while they load: int8, int4 or fp8; not without it",
    )
    engine_kv_dtype: Literal["auto", "int8", "fp8"] = Field(
        default="auto", description="int8 or fp8 keep K and V in 8 bits; auto does what the model's checkpoint says"
    )
    engine_graphs: Literal["auto", "off"] = Field(
        default="auto", description="off: no CUDA graphs of decoding steps are recorded"
    )
    engine_overlap: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether a step is launched before the one ahead of it has ended; auto does so on a GPU",
    )
    engine_memory_share: float = Field(
        default=0.45,
        gt=0,
        le=1,
        description="Share of a GPU's memory for the KV pool, of what weights and the largest steps leave; "
        "what is above a half leaves a new version no room to load beside the old one",
    )
    engine_max_model_len: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens of prompt and output together; what the model has, where that is less or nothing "
        "is set. The control process reads it too: longer jobs are refused when they are submitted",
    )
    engine_deterministic: bool = Field(
        default=False,
        description="Outputs do not depend to the bit on what else runs, nor on a worker's death in between",
    )
    engine_stall_seconds: float = Field(
        default=120.0,
        gt=0,
        description="How long an engine may have work and take no step before it is restarted",
    )
    trace_folder: str | None = Field(
        default=None,
        description="Folder where engines record their last steps, for `penstock engine trace`; none without it",
    )
    consumption_stall_seconds: float = Field(
        default=120.0,
        gt=0,
        description="How long a worker with free slots may take none of the jobs that wait before it restarts itself",
    )
    model_poll_seconds: float = Field(default=2.0, gt=0, description="How often MLflow's aliases are read")
    registry_hand_moves: Literal["honour", "revert"] = Field(
        default="honour",
        description="What follows when somebody moves or removes the alias champion in MLflow: jobs follow it and a "
        "rollout of the model ends, or the alias is set back",
    )
    registry_webhook_secret: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Secret by which MLflow signs its webhooks; with it they are taken at /hooks/registry, and aliases "
        "are read as soon as they move",
    )
    registry_webhook_url: str | None = Field(
        default=None,
        description="How MLflow reaches the web process: its webhook is made there by itself; PENSTOCK_PUBLIC_URL "
        "without it",
    )

    # Webhooks
    webhook_allow_loopback: bool = Field(
        default=False, description="Let webhooks go to loopback addresses, for development"
    )
    webhook_timeout_seconds: float = Field(default=15.0, gt=0, description="How long one webhook attempt may take")
    webhook_disable_days: float = Field(
        default=5.0, gt=0, description="How long a webhook endpoint may fail without a success before it is disabled"
    )

    # Metrics
    metrics_host: str = Field(
        default="127.0.0.1", description="Address that control and worker processes serve Prometheus's metrics on"
    )
    control_metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of the control process's metrics; 0 is any, none without it"
    )
    worker_metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of the worker's metrics; 0 is any, none without it"
    )

    # Traces
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="Where spans are sent by OTLP over HTTP, such as http://collector:4318; no spans without it",
    )
    trace_share: float = Field(
        default=1.0, ge=0, le=1, description="Share of the requests without a traceparent that are traced"
    )

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged"
    )
    log_format: Literal["json", "console"] = Field(default="json", description="How a log line looks")

    @field_validator("database_url")
    @classmethod
    def _use_psycopg(cls, url: SecretStr) -> SecretStr:
        scheme, separator, rest = url.get_secret_value().partition("://")
        if not separator or scheme not in ("postgres", "postgresql", "postgresql+psycopg"):
            raise ValueError("must be a PostgreSQL address: postgresql://user:password@host:port/name")
        return SecretStr(f"postgresql+psycopg://{rest}")

    @field_validator("redis_url")
    @classmethod
    def _must_be_redis(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must be a Redis address: redis://:password@host:port/0")
        return url


def variable_name(field: str) -> str:
    """The environment variable that sets `field`."""
    return field.upper() if field.startswith("mlflow_") else _PREFIX + field.upper()


def _explain(location: tuple[int | str, ...], message: str) -> str:
    variable = variable_name(str(location[0])) if str(location[0]).islower() else str(location[0])
    return f"{variable}: {message[0].lower()}{message[1:]}"
