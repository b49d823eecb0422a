"""A tool that speaks the lines of `penstock_compress.telling`, and does what `PLAN` in its environment says.

done        tells its parts, writes the model, and ends
wait        tells one part, and goes on until it is stopped
hang        tells one part, and stands still
fail        refuses
die         is killed at its first part; at the second attempt it is done
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any


def say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


def spin() -> None:
    def stop(*_: object) -> None:
        say(event="failed", code="stopped", message="stopped", field=None)
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)
    while True:
        time.sleep(0.001)


def quantize(source: Path, out: Path) -> None:
    partial = out.with_name(f"{out.name}.partial")
    resumed = partial.exists()
    partial.mkdir(exist_ok=True)
    say(event="progress", done=1, of=2, what="block 0")
    plan = os.environ["PLAN"]
    if plan == "wait":
        spin()
    if plan == "hang":
        signal.pause()
    if plan == "fail":
        say(event="failed", code="source_unusable", message="cannot be read", field="source")
        sys.exit(1)
    if plan == "die" and not resumed:
        os.kill(os.getpid(), signal.SIGKILL)
    say(event="progress", done=2, of=2, what="resumed" if resumed else "block 1")
    for file in source.iterdir():
        shutil.copy(file, partial)
    partial.rename(out)
    say(event="done", out=str(out), bytes=25, source_bytes=100, recipe={"scheme": "int4"})


if __name__ == "__main__":
    if sys.argv[1] == "evaluate":
        lines = Path(sys.argv[sys.argv.index("--data") + 1]).read_text().splitlines()
        say(event="done", figures={"sequences": len(lines), "candidate": {"path": sys.argv[2], "bytes": 25}})
    else:
        quantize(Path(sys.argv[2]), Path(sys.argv[4]))
