"""The options of `penstock submit` that say how the answer is generated."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from penstock.cli.failure import EXIT_USAGE, Failure
from penstock.cli.options import assignment, json_assignment

_AS_THEY_ARE: Final = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "n", "best_of")
_STRUCTURES: Final = ("json_schema", "regex", "choice", "lark")
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_OPTIONS: Final = (
    click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate."),
    click.option("--temperature", type=float, help="0 is greedy."),
    click.option("--top-p", type=float, help="Sample among the likeliest tokens of this total probability."),
    click.option("--top-k", type=int, help="Sample among the k likeliest tokens."),
    click.option("--min-p", type=float, help="Drop tokens less likely than this share of the likeliest."),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option("--stop", multiple=True, help="Stop before this text; may be repeated."),
    click.option("--n", type=int, help="Answers to generate side by side."),
    click.option("--best-of", type=int, help="Generate so many, and tell the n likeliest."),
    click.option("--json-schema", type=_FILE, metavar="FILE", help="The answer is JSON that this schema admits."),
    click.option("--regex", metavar="TEXT", help="The whole answer matches it."),
    click.option("--choice", multiple=True, metavar="TEXT", help="The answer is one of these; repeat it."),
    click.option("--lark", type=_FILE, metavar="FILE", help="The answer is of this grammar's language."),
    click.option(
        "--logit-bias",
        multiple=True,
        metavar="TOKEN=NUMBER",
        type=assignment,
        help="Added to a token's logit.",
    ),
    click.option("--logprobs", is_flag=True, help="Tell each token's log probability."),
    click.option(
        "--param",
        "more_params",
        multiple=True,
        type=json_assignment,
        metavar="NAME=VALUE",
        help="Any other sampling parameter.",
    ),
)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give the command the options; `params_of` makes the request's `params` of what was given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def params_of(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters that were asked for; None where none was. What is wrong with them, the server says."""
    params = {name: given[name] for name in _AS_THEY_ARE if given[name] is not None} | dict(given["more_params"])
    if given["stop"]:
        params["stop"] = list(given["stop"])
    if given["logprobs"]:
        params["logprobs"] = True
    if given["logit_bias"]:
        params["logit_bias"] = {token: _number(token, bias) for token, bias in given["logit_bias"]}
    if (structure := _structure(given)) is not None:
        params["response_format"] = structure
    return params or None


def _structure(given: Mapping[str, Any]) -> dict[str, Any] | None:
    named = [name for name in _STRUCTURES if given[name]]
    if len(named) > 1:
        raise click.UsageError("give one of --json-schema, --regex, --choice and --lark")
    match named:
        case ["json_schema"]:
            return {"type": "json_schema", "schema": _read_schema(given["json_schema"])}
        case ["lark"]:
            return {"type": "lark", "lark": read_text(given["lark"])}
        case ["choice"]:
            return {"type": "choice", "choice": list(given["choice"])}
        case ["regex"]:
            return {"type": "regex", "regex": given["regex"]}
    return None


def read_text(path: Path) -> str:
    """A file that holds UTF-8 text. Raises `Failure`."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise Failure(f"{path} is not text in UTF-8", EXIT_USAGE) from None
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}", EXIT_USAGE) from None


def _read_schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(read_text(path))
    except ValueError as error:
        raise Failure(f"{path} is not JSON: {error}", EXIT_USAGE) from None
    if not isinstance(schema, dict):
        raise Failure(f"{path} must hold a JSON schema, which is an object", EXIT_USAGE)
    return schema


def _number(token: str, bias: str) -> float:
    try:
        return float(bias)
    except ValueError:
        raise click.UsageError(f"--logit-bias {token}={bias}: {bias!r} is no number") from None
