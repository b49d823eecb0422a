"""The peer: what people write today. Flask takes a job, Celery runs `transformers.generate`, Redis keeps the result.

python -m bench.platform_parts.plain_peer REDIS_URL FOLDER --pool solo|threads --concurrency N

runs its worker. Its web process is gunicorn's own: `gunicorn --threads N 'bench.platform_parts.plain_peer:web(URL)'`.
The client polls for the result.
"""

import argparse
from pathlib import Path
from typing import Any

from celery import Celery
from flask import Flask, jsonify, request


def queue(redis_url: str) -> Celery:
    """Broker and result backend on one Redis."""
    return Celery("plain", broker=redis_url, backend=redis_url)


def web(redis_url: str) -> Flask:
    """Two routes: submit, and look whether there is a result."""
    app, tasks = Flask("plain"), queue(redis_url)

    @app.post("/generate")
    def submit() -> Any:
        asked = request.get_json()
        return jsonify({"id": tasks.send_task("generate", args=[asked["messages"], asked["max_tokens"]]).id}), 202

    @app.get("/result/<task_id>")
    def result(task_id: str) -> Any:
        found = tasks.AsyncResult(task_id)
        return jsonify({"state": found.state, "text": found.result if found.successful() else None})

    return app


def run_worker(redis_url: str, folder: Path, pool: str, concurrency: int) -> None:
    """Load the model once, then one generate for each task."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    app = queue(redis_url)

    @app.task(name="generate")  # type: ignore[untyped-decorator]  # Celery ships no types
    def generate(messages: list[dict[str, str]], max_tokens: int) -> str:
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = model.generate(**prompt, max_new_tokens=max_tokens, do_sample=False)
        return str(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))

    app.worker_main(
        ["worker", "--pool", pool, "--concurrency", str(concurrency), "--loglevel", "warning", "--without-gossip"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("redis_url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pool", choices=("solo", "threads"), default="solo")
    parser.add_argument("--concurrency", type=int, default=1)
    args = parser.parse_args()
    run_worker(args.redis_url, args.folder, args.pool, args.concurrency)


if __name__ == "__main__":
    main()
