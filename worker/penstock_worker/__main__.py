"""`python -m penstock_worker`: the same as `penstock worker`."""

from penstock_worker.cli import worker

if __name__ == "__main__":
    worker()
