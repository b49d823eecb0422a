"""MLflow's tracking server and model registry, on the embedded PostgreSQL in a database of its own."""

import sys
from pathlib import Path

import httpx

from penstock.embedded.child import Command
from penstock.embedded.ports import LOOPBACK
from penstock.embedded.service import Report
from penstock.embedded.state_folder import Secrets, StateFolder

SERVER = Path(__file__).with_name("mlflow_server.py")


class MLflow:
    """The embedded MLflow server: one process, loopback only, artifacts in the state folder."""

    name = "mlflow"
    stage = 1
    stop_seconds = 10.0

    def __init__(self, folder: StateFolder, secrets: Secrets, port: int, database_url: str) -> None:
        self._folder, self._secrets, self._database_url = folder, secrets, database_url
        self.port = port

    @property
    def url(self) -> str:
        """MLflow's tracking URI."""
        return f"http://{LOOPBACK}:{self.port}"

    def prepare(self, report: Report) -> None:
        """Make the artifacts' folder; the server makes and migrates its tables itself."""
        report(self.name, "loading")
        with self._folder.full_disk_named():
            self._artifacts.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def _artifacts(self) -> Path:
        return self._folder.mlflow / "artifacts"

    def command(self) -> Command:
        """`mlflow server`; the database's address goes in by the environment, where others cannot read it."""
        return Command(
            program=Path(sys.executable),
            arguments=("-P", "-W", "ignore", str(SERVER)),  # -P: this folder has a redis.py and a mlflow.py
            folder=self._folder.mlflow,
            inherits_environment=True,
            environment={
                "MLFLOW_BACKEND_STORE_URI": self._database_url,
                "MLFLOW_ARTIFACTS_DESTINATION": str(self._artifacts),
                "MLFLOW_HOST": LOOPBACK,
                "MLFLOW_PORT": str(self.port),
                "MLFLOW_WORKERS": "1",
                "MLFLOW_SERVER_ALLOWED_HOSTS": f"{LOOPBACK}:{self.port},localhost:{self.port}",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": self._secrets.webhook_encryption_key,
                "MLFLOW_CRYPTO_KEK_PASSPHRASE": self._secrets.mlflow_passphrase,
                # Its webhooks go to the web process beside it, over loopback.
                "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
                "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
                "MLFLOW_WEBHOOK_CACHE_TTL": "2",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "4",
                "OMP_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "2",
            },
        )

    def is_ready(self) -> bool:
        """Whether /health answers, which it does once the tables are there."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False
