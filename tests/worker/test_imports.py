"""The worker process must stay small: what computes lives in the engine's process."""

import subprocess
import sys


def test_the_worker_process_imports_no_torch() -> None:
    program = "import sys, penstock_worker.app, penstock_worker.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "penstock_worker.serving" in loaded
    assert not {"torch", "transformers", "penstock_engine", "mlflow", "numpy"} & set(loaded)
