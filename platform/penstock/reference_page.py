"""The reference page: what it shows of an OpenAPI document, and its template."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

_METHODS: Final = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Row:
    """One parameter or member of a body, as the page lists it."""

    name: str
    place: str
    type: str
    required: bool
    description: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One route and method."""

    method: str
    path: str
    tag: str
    summary: str
    description: str
    scopes: list[str]
    rows: list[Row]
    answers: list[tuple[str, str, str]]

    @property
    def anchor(self) -> str:
        return f"{self.method}{self.path}".replace("/", "-").replace("{", "").replace("}", "")


def operations(spec: dict[str, Any]) -> list[Operation]:
    """Every operation of the document, in its order."""
    return [
        _operation(spec, method, path, item[method])
        for path, item in spec["paths"].items()
        for method in _METHODS
        if method in item
    ]


def _operation(spec: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> Operation:
    return Operation(
        method=method,
        path=path,
        tag=", ".join(operation.get("tags", [])),
        summary=operation.get("summary", ""),
        description=operation.get("description", ""),
        scopes=[scope for need in operation.get("security", []) for scopes in need.values() for scope in scopes],
        rows=[*_parameters(operation), *_body(spec, operation)],
        answers=[_answer(status, answer) for status, answer in sorted(operation["responses"].items())],
    )


def _parameters(operation: dict[str, Any]) -> Iterator[Row]:
    for parameter in operation.get("parameters", []):
        type_ = type_of(parameter["schema"])
        yield Row(parameter["name"], parameter["in"], type_, parameter["required"], parameter.get("description", ""))


def _body_schema(operation: dict[str, Any]) -> dict[str, Any] | None:
    content = operation.get("requestBody", {}).get("content", {})
    return next((media["schema"] for media in content.values()), None)


def _body(spec: dict[str, Any], operation: dict[str, Any]) -> Iterator[Row]:
    """The members of the body; of further kinds of it, those that the first has not."""
    schema = _body_schema(operation) or {}
    first, *others = schema.get("oneOf", [schema])
    rows = list(_members(spec, first))
    yield from rows
    known = {row.name for row in rows}
    for other in others:
        kind = _resolved(spec, other)["properties"]["kind"]["const"]
        yield from (row for row in _members(spec, other, place=f"body, kind {kind}") if row.name not in known)


def _members(
    spec: dict[str, Any], schema: dict[str, Any] | None, prefix: str = "", place: str = "body"
) -> Iterator[Row]:
    """The members of a body, those of nested objects after the object that holds them."""
    schema = _resolved(spec, schema)
    for name, member in schema.get("properties", {}).items():
        required = name in schema.get("required", [])
        yield Row(prefix + name, place, type_of(member), required, member.get("description", ""))
        for inner, suffix in _inner_schemas(member):
            yield from _members(spec, inner, f"{prefix}{name}{suffix}.", place)


def _inner_schemas(member: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for option in member.get("anyOf", [member]):
        if "$ref" in option:
            yield option, ""
        elif "$ref" in option.get("items", {}):
            yield option["items"], "[]"


def _resolved(spec: dict[str, Any], schema: dict[str, Any] | None) -> dict[str, Any]:
    if schema is not None and "$ref" in schema:
        found: dict[str, Any] = spec["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        return found
    return schema or {}


def type_of(schema: dict[str, Any]) -> str:
    """A schema's type in a few words, with its bounds and default."""
    text = _plain_type(schema)
    bounds = [f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema]
    if bounds:
        text += f" ({', '.join(bounds)})"
    return text if schema.get("default") in (None, [], {}) else f"{text}, else {json.dumps(schema['default'])}"


_BOUNDS: Final = {
    "minimum": "from",
    "maximum": "to",
    "exclusiveMinimum": "above",
    "exclusiveMaximum": "below",
    "minLength": "length from",
    "maxLength": "length to",
    "maxItems": "at most",
}


def _plain_type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1].rsplit(".", 1)[-1])
    if "anyOf" in schema:
        return " or ".join(_plain_type(option) for option in schema["anyOf"])
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"array of {_plain_type(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("type") or "any")


def _answer(status: str, answer: dict[str, Any]) -> tuple[str, str, str]:
    schemas = [media.get("schema", {}) for media in answer.get("content", {}).values()]
    kinds = ", ".join(answer.get("content", {}))
    body = f"{_plain_type(schemas[0])} as {kinds}" if schemas else "no body"
    return status, answer.get("description") or HTTPStatus(int(status)).phrase, body


TEMPLATE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ spec.info.title }} API {{ spec.info.version }}</title>
<style>
  :root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
  body { max-width: 64rem; margin: 0 auto; padding: 1.5rem; }
  code, .path { font-family: ui-monospace, monospace; }
  section { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); padding: 1rem 0; }
  h2 { font-size: 1.1rem; margin: 0; }
  h3 { font-size: .9rem; margin: 1rem 0 .25rem; }
  .method { display: inline-block; min-width: 3.5rem; text-transform: uppercase; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; width: 100%; font-size: .875rem; }
  th:last-child, td:last-child { min-width: 16rem; }
  th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; }
  details pre { overflow-x: auto; font-size: .8rem; }
</style>
</head>
<body>
<main>
<h1>{{ spec.info.title }} API</h1>
<p>{{ spec.info.description }}</p>
<p>Version {{ spec.info.version }} · <a href="/openapi.json">OpenAPI {{ spec.openapi }} document</a>
 · Keys go into <code>Authorization: Bearer psk_...</code></p>
<nav aria-label="Operations"><ul>
{% for operation in operations %}
<li><a href="#{{ operation.anchor }}"><code>{{ operation.method|upper }} {{ operation.path }}</code></a>
{{ operation.summary }}</li>
{% endfor %}
</ul></nav>
{% for operation in operations %}
<section id="{{ operation.anchor }}">
<h2><span class="path"><span class="method">{{ operation.method }}</span>{{ operation.path }}</span></h2>
<p><strong>{{ operation.summary }}</strong> {{ operation.description }}</p>
<p>{{ operation.tag }} · scope {% for scope in operation.scopes %}<code>{{ scope }}</code>{% endfor %}</p>
{% if operation.rows %}
<h3>Takes</h3>
<div class="wide"><table>
<thead><tr><th scope="col">Name</th><th scope="col">In</th><th scope="col">Type</th><th scope="col">Meaning</th></tr>
</thead>
<tbody>
{% for row in operation.rows %}
<tr><td><code>{{ row.name }}</code>{% if row.required %} (required){% endif %}</td><td>{{ row.place }}</td>
<td>{{ row.type }}</td><td>{{ row.description }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
<h3>Answers</h3>
<div class="wide"><table>
<thead><tr><th scope="col">Status</th><th scope="col">Meaning</th><th scope="col">Body</th></tr></thead>
<tbody>
{% for status, meaning, body in operation.answers %}
<tr><td><code>{{ status }}</code></td><td>{{ meaning }}</td><td>{{ body }}</td></tr>
{% endfor %}
</tbody></table></div>
</section>
{% endfor %}
<section id="schemas">
<h2>Schemas</h2>
{% for name, schema in spec.components.schemas.items() %}
<details><summary><code>{{ name }}</code> {{ schema.description or "" }}</summary>
<pre>{{ schema|tojson(indent=2) }}</pre></details>
{% endfor %}
</section>
</main>
</body>
</html>
"""
