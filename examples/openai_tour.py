"""OpenAI's own client against a running Penstock: a chat, a stream, a broken background response, a batch of invoices.

    penstock up --model invoice-extractor=examples/invoices/model      # prints the key
    OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=psk_... python -m examples.openai_tour

Ends with 1 when anything was not as it should be.
"""

import argparse
import json
import sys
import time
from typing import Any

from openai import OpenAI
from openai.types import Batch

from examples.invoices.generator import Invoice, draw_invoice
from examples.invoices.layouts import Split

MODEL = "invoice-extractor"
SEED = 8_117  # no other's: training and evaluation never saw these invoices
MAX_TOKENS = 128
ENDED = ("completed", "failed", "expired", "cancelled")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1000, help="invoices in the batch (default: 1000)")
    invoices = [draw_invoice(SEED, index, Split.HELD_OUT) for index in range(parser.parse_args().lines)]
    with OpenAI() as client:
        chat(client, invoices[0])
        stream(client, invoices[0])
        whole = background(client, invoices[0])
        right = batch(client, invoices)
    return 0 if whole and right else 1


def chat(client: OpenAI, invoice: Invoice) -> None:
    answer = client.chat.completions.create(**asked(invoice))
    print(f"chat        {answer.choices[0].message.content}")
    print(f"            {answer.id}, version {answer.system_fingerprint}, {answer.usage.total_tokens} tokens")


def stream(client: OpenAI, invoice: Invoice) -> None:
    print("stream      ", end="")
    for chunk in client.chat.completions.create(stream=True, **asked(invoice)):
        for choice in chunk.choices:
            print(choice.delta.content or "", end="|", flush=True)
    print()


def background(client: OpenAI, invoice: Invoice) -> bool:
    """Read five events, break off, come back: what was missed is told, and nothing twice."""
    body: dict[str, Any] = {"model": MODEL, "input": invoice.text, "max_output_tokens": MAX_TOKENS, "temperature": 0}
    with client.responses.create(stream=True, background=True, **body) as events:
        had: list[Any] = [next(events) for _ in range(5)]
    print(f"response    {had[0].response.id}: events 0 to {had[-1].sequence_number}, then the connection is closed")
    after = had[-1].sequence_number
    rest: list[Any] = list(client.responses.retrieve(had[0].response.id, stream=True, starting_after=after))
    numbers = [event.sequence_number for event in [*had, *rest]]
    text = "".join(event.delta for event in [*had, *rest] if event.type == "response.output_text.delta")
    print(f"            events {rest[0].sequence_number} to {rest[-1].sequence_number}: {text}")
    return numbers == list(range(len(numbers))) and text == rest[-1].response.output_text


def batch(client: OpenAI, invoices: list[Invoice]) -> bool:
    """All of them in one file; each line's answer is held against the right one."""
    lines = [json.dumps(line(index, invoice)) for index, invoice in enumerate(invoices)]
    file = client.files.create(file=("invoices.jsonl", "\n".join(lines).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    started = time.monotonic()
    done = watched(client, made)
    seconds = time.monotonic() - started
    results = [json.loads(each) for each in client.files.content(done.output_file_id or "").iter_lines()]
    answers = {each["custom_id"]: each["response"]["body"]["choices"][0]["message"]["content"] for each in results}
    exact = sum(answers.get(f"invoice-{index}") == invoice.answer for index, invoice in enumerate(invoices))
    print(
        f"batch       {done.status}: {len(answers)} of {len(invoices)} answered in {seconds:.1f} s, "
        f"{exact} exact ({exact / len(invoices):.1%})"
    )
    return done.status == "completed" and len(answers) == len(results) == len(invoices)


def watched(client: OpenAI, made: Batch) -> Batch:
    told = ""
    while (now := client.batches.retrieve(made.id)).status not in ENDED:
        assert now.request_counts is not None
        line = f"batch       {made.id} {now.status}: {now.request_counts.completed} of {now.request_counts.total}"
        if line != told:
            print(told := line)
        time.sleep(2)
    return now


def asked(invoice: Invoice) -> dict[str, Any]:
    messages = [{"role": "user", "content": invoice.text}]
    return {"model": MODEL, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}


def line(index: int, invoice: Invoice) -> dict[str, Any]:
    body = asked(invoice)
    return {"custom_id": f"invoice-{index}", "method": "POST", "url": "/v1/chat/completions", "body": body}


if __name__ == "__main__":
    sys.exit(main())
