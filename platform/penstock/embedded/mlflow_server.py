"""Run as a script: `mlflow server` in one process instead of two.

MLflow's command prepares the database, then starts uvicorn as a child and only waits for it, so that each of
the two holds 200 MB of the same modules. Here uvicorn runs in the process that has loaded them already: half
the memory, and ready in half the time. Everything else is MLflow's own command, which reads its options from
`MLFLOW_...` variables.
"""

import os
from collections.abc import Mapping
from typing import Any

import uvicorn  # first: MLflow switches its checks of Host and Origin on when it sees a server loaded

# isort: split
import mlflow.server
from mlflow.cli import cli


def serve_here(command: list[str], *, extra_env: Mapping[str, str], **_options: Any) -> None:
    """In place of starting `python -m uvicorn ...` as a child: run it here, until it is asked to end."""
    runner, arguments = command[1:3], command[3:]
    if runner != ["-m", "uvicorn"]:
        raise SystemExit(f"this MLflow starts its server differently: {command}")
    os.environ.update(extra_env)
    uvicorn.main(args=arguments)


if __name__ == "__main__":
    if not callable(getattr(mlflow.server, "_exec_cmd", None)):
        raise SystemExit("this MLflow starts its server differently: it has no mlflow.server._exec_cmd")
    mlflow.server._exec_cmd = serve_here
    cli(["server"])
