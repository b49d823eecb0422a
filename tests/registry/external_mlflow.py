"""Run as a script: an MLflow server that asks for names and passwords, in one process instead of two."""

from penstock.embedded.mlflow_server import serve_here

# isort: split
import mlflow.server
from mlflow.cli import cli

if __name__ == "__main__":
    mlflow.server._exec_cmd = serve_here
    cli(["server", "--app-name", "basic-auth"])
