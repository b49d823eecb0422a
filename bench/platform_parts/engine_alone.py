"""The engine without the platform, set up as a worker sets it up: what the platform's tax is measured against.

python -m bench.platform_parts.engine_alone FOLDER --slots N

For each line of standard input, `{"prompts": [[token id, ...], ...], "output": N}`, all prompts are submitted at once
and each generates N tokens; the answer is a line with the seconds that took.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from penstock_engine import Engine, EngineConfig, Request, SamplingParams


def run(engine: Engine, prompts: list[list[int]], output: int) -> float:
    """Seconds from the first submit to the last token."""
    sampling = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
    began, tokens = time.perf_counter(), 0
    for number, prompt in enumerate(prompts):
        engine.submit(Request(id=f"r{number}", prompt_ids=prompt, sampling=sampling))
    while engine.has_work:
        tokens += len(engine.step().deltas)
    assert tokens == len(prompts) * output, f"{tokens} tokens of {len(prompts) * output}"
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slots", type=int, required=True)
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    config = EngineConfig(max_running=args.slots, token_budget=max(512, args.slots))
    engine = Engine.from_folder(args.folder, config)
    engine.warm_up()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps({"seconds": run(engine, asked["prompts"], asked["output"])}), file=answers, flush=True)


if __name__ == "__main__":
    main()
