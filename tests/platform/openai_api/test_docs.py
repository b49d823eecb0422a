"""The examples of docs/openai.md run, one after the other as they stand there, and do what the page says."""

import json
import re
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.platform.openai_api.conftest import House
from tests.worker.conftest import deploy

CALLER = "qwen2.5-7b-instruct"
"""The page's model that calls tools; the house's demo model has a template like it."""
PAGE = (ROOT / "docs/openai.md").read_text()


def test_every_example_runs(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    deploy(house.world.database, house.folder, name="invoice-extractor")
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 10
    scope: dict[str, Any] = {"__name__": "examples"}
    said = []
    for example in examples:
        ours = example.replace("http://127.0.0.1:8080", house.url).replace("psk_…", house.key).replace(CALLER, "tiny")
        exec(ours, scope)
        said.append(capsys.readouterr().out)
    scope["client"].close()

    assert scope["answer"].usage.total_tokens > 0
    assert house.job(scope["finished"].id).state == "succeeded"
    assert said[2].splitlines()[-1].endswith("20") or scope["chunk"].usage.completion_tokens < 20
    assert said[3] == "3965.06\n"
    called, ended = said[4].splitlines()
    assert called.startswith("find_invoice {")
    assert set(json.loads(called.removeprefix("find_invoice "))) == {"number", "paid"}
    assert ended in ("stop", "length")
    assert said[5] == "['message', 'function_call', 'function_call_output']\n"
    assert said[6] == "['user', 'assistant', 'user']\n"
    assert said[7] == "3\n"
    assert [line.rpartition(" ")[2].startswith("-") for line in said[8].splitlines() if " -" in line] == [True, True]
    assert said[9].startswith("temperature Error code: 400")
