"""The form for a new job: how it is filled, what request it makes, and at which field each error belongs.

A field's name is its dotted path in the API's request body, so that the API's own typed errors find their fields.
Values go into the request as what they look like (a number, or text where none can be read); `JobRequest` judges them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from pydantic import ValidationError
from werkzeug.datastructures import MultiDict

from penstock.errors import PenstockError
from penstock.jobs.models import Job
from penstock.jobs.params import asked_for
from penstock.jobs.schemas import JobRequest
from penstock.jobs.states import JobClass
from penstock.portal.fields import sentence
from penstock.problems import explain_validation

NUMBERS: Final = (
    "params.max_tokens", "params.temperature", "params.top_p", "params.top_k", "params.seed", "params.n",
    "budget.tokens", "priority",
)  # fmt: skip
SCHEMA: Final = "params.response_format"
OTHERS: Final = ("model", "input.prompt", "params.stop", SCHEMA, "params", "class", "tags", "webhook.url")
_DEFAULTS: Final[Mapping[str, str]] = {"params.temperature": "0", "class": "interactive"}
_EMPTY: Final[Mapping[str, str]] = {"input.prompt": "Write a prompt.", "input.messages": "Write at least one message."}


@dataclass(frozen=True, slots=True)
class JobForm:
    """The form's fields as text. `mode` is `prompt` or `chat`; `messages` are roles with their contents."""

    values: Mapping[str, str]
    mode: str = "chat"
    messages: Sequence[tuple[str, str]] = field(default=(("system", ""), ("user", "")))

    @classmethod
    def blank(cls, model: str) -> Self:
        """The form as a person first sees it."""
        return cls({**_DEFAULTS, "model": model})

    @classmethod
    def sent(cls, form: MultiDict[str, str]) -> Self:
        """The form as it was sent."""
        values = {name: _plain_lines(form.get(name, "")) for name in (*NUMBERS, *OTHERS)}
        contents = map(_plain_lines, form.getlist("message.content"))
        messages = tuple(zip(form.getlist("message.role"), contents, strict=False))
        return cls(values, "prompt" if form.get("mode") == "prompt" else "chat", messages)

    @classmethod
    def of_job(cls, job: Job) -> Self:
        """An earlier job's request, to be changed and sent again."""
        params = {f"params.{name}": _text(value) for name, value in job.params.items() if value is not None}
        values = params | {
            "model": job.model,
            "input.prompt": job.input.get("prompt", ""),
            "params.seed": str(job.seed),
            "params.stop": "\n".join(job.params.get("stop", [])),
            SCHEMA: _schema(job.params),
            "params": _further(job.params),
            "budget.tokens": str(job.token_budget or ""),
            "class": "interactive" if job.job_class == JobClass.INTERACTIVE else "batch",
            "priority": str(job.priority) if job.priority else "",
            "tags": ", ".join(job.tags),
            "webhook.url": (job.webhook or {}).get("url", ""),
        }
        messages = tuple((message["role"], message["content"]) for message in job.input.get("messages", []))
        return cls(values, "chat" if messages else "prompt", messages or (("system", ""), ("user", "")))

    def with_values(self, **values: str) -> Self:
        """The same with some fields changed: `model`, `tags`, `seed`."""
        named = {"params.seed" if name == "seed" else name: value for name, value in values.items()}
        return replace(self, values={**self.values, **named})

    def with_messages(self, *messages: tuple[str, str]) -> Self:
        """The conversation with more messages at its end."""
        return replace(self, messages=(*self.messages, *messages))

    def request(self) -> JobRequest:
        """The request that the form makes. Raises `ValidationFailed` as the API does."""
        try:
            return JobRequest.model_validate_json(json.dumps(self.body()))
        except ValidationError as error:
            raise explain_validation(error) from None

    def errors(self, error: PenstockError) -> dict[str, str]:
        """Each field's error as a sentence, by the field's name; what belongs to no field is under the empty name."""
        problems = error.extra.get("errors") or [{"field": error.field or "", "message": error.message}]
        found: dict[str, str] = {}
        for problem in problems:
            name = self._nearest_field(problem["field"])
            empty = name in _EMPTY and not any(self._input().values()) and _EMPTY[name]
            found.setdefault(name, empty or _sentence(problem))
        return found

    def _nearest_field(self, path: str) -> str:
        """The field that `path` lies in: `params.stop.2` is in `params.stop`, input in what is shown."""
        if path.partition(".")[0] in ("input", "prompt", "messages"):
            return "input.prompt" if self.mode == "prompt" else "input.messages"
        fields = {*NUMBERS, *OTHERS} - (set() if self.values.get(SCHEMA) else {SCHEMA})
        while path and path not in fields:
            path = path.rpartition(".")[0]
        return path

    def body(self) -> dict[str, Any]:
        """The API's request body, as far as the fields can be read."""
        body: dict[str, Any] = {"params": {}, "budget": {}}
        for name in NUMBERS:
            if text := self.values.get(name, "").strip():
                _put(body, name, _number(text))
        if stops := [line for line in self.values.get("params.stop", "").split("\n") if line]:
            body["params"]["stop"] = stops
        if not body["budget"]:
            del body["budget"]
        if schema := self.values.get(SCHEMA, "").strip():
            body["params"]["response_format"] = {"type": "json_schema", "schema": _json(schema)}
        if further := self.values.get("params", "").strip():
            known = _json(further)
            body["params"] = known | body["params"] if isinstance(known, dict) else known
        if tags := [tag.strip() for tag in self.values.get("tags", "").split(",") if tag.strip()]:
            body["tags"] = tags
        if url := self.values.get("webhook.url", "").strip():
            body["webhook"] = {"url": url}
        asked = {name: self.values[name] for name in ("model", "class") if self.values.get(name)}
        return body | asked | {"input": self._input()}

    def _input(self) -> dict[str, Any]:
        if self.mode == "prompt":
            return {"prompt": self.values.get("input.prompt", "")}
        return {"messages": [{"role": role, "content": content} for role, content in self.messages if content.strip()]}


def _further(params: Mapping[str, Any]) -> str:
    """The parameters that have no field of their own, as JSON; empty without any."""
    named = {name.removeprefix("params.") for name in (*NUMBERS, *OTHERS) if name != SCHEMA or _schema(params)}
    further = {name: value for name, value in asked_for(params).items() if name not in named}
    return json.dumps(further, indent=2, ensure_ascii=False) if further else ""


def _schema(params: Mapping[str, Any]) -> str:
    """The JSON Schema that the output is held to, as text; empty for other structures and without any."""
    wanted = params.get("response_format") or {}
    return json.dumps(wanted["schema"], indent=2, ensure_ascii=False) if wanted.get("type") == "json_schema" else ""


def _json(text: str) -> Any:
    """What the text holds; where that is no JSON, the text itself, which `JobRequest` refuses."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _sentence(problem: Mapping[str, str]) -> str:
    if problem["field"] in NUMBERS and problem["message"].startswith("has the wrong type"):
        return "Write a whole number." if "integer" in problem["expected"] else "Write a number."
    return sentence(problem)


def _put(body: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        body = body[parent]
    body[last] = value


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _plain_lines(text: str) -> str:
    # Browsers send every line break as CR LF; a model should see the one that was typed.
    return text.replace("\r\n", "\n")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
