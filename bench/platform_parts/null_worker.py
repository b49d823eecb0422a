"""The real worker, with `null_engine` where its engines would be.

python -m bench.platform_parts.null_worker [--step-seconds S] [--fails FOLDER]

Set by the environment as `penstock worker` is; run it where `bench` can be imported, as its engines are.
"""

import argparse
import sys

from penstock.logs import configure_logs
from penstock.settings import Settings
from penstock_worker.app import run_worker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-seconds", default="0")
    parser.add_argument("--fails", help="folder of a version that gives up every request")
    args = parser.parse_args()
    settings = Settings.from_environment()
    configure_logs(settings, "worker")
    program: tuple[str, ...] = ("-m", "bench.platform_parts.null_engine", "--step-seconds", args.step_seconds)
    program += ("--fails", args.fails) if args.fails else ()
    sys.exit(run_worker(settings, program))


if __name__ == "__main__":
    main()
