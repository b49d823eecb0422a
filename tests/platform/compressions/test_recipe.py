"""What the API takes as a recipe is what `penstock_compress` takes: both judge every combination alike."""

from dataclasses import fields
from itertools import product
from typing import Any

import click
import pytest
from penstock.compressions.recipe import CALIBRATED, GROUPED, SCHEMES, RecipeRequest
from penstock_compress import InvalidRecipe, Recipe
from penstock_compress.cli import quantize
from penstock_compress.recipe import CALIBRATED as THEIR_CALIBRATED
from penstock_compress.recipe import METHODS, MIXED
from penstock_compress.recipe import SCHEMES as THEIR_SCHEMES
from pydantic import ValidationError

STRANGE: dict[str, list[Any]] = {
    "group": [-8, 0, 4, 8, 12, 64, 128],
    "damping": [-0.1, 0.0, 1e-6, 1.0, 1.1],
    "samples": [0, 1],
    "length": [0, 1],
    "act_order": [False, True],
    "searched": [False, True],
    "method": [*METHODS, "none"],
    "kv": [None, "int8", "fp8", "int4"],
    "target_bytes": [None, "40%", "900kB", "1.2 GB", "123456", "0", "0%", "-1", "much", "1.2.3kB", ""],
}


def theirs(**given: Any) -> tuple[bool, dict[str, Any]]:
    try:
        return True, {field.name: getattr(Recipe(**given), field.name) for field in fields(Recipe)}
    except InvalidRecipe as error:
        return False, {"field": error.field}


def ours(**given: Any) -> tuple[bool, dict[str, Any]]:
    try:
        return True, RecipeRequest.model_validate(given).model_dump()
    except ValidationError as error:
        return False, {"field": error.errors()[0]["loc"][0]}


def test_the_names_are_the_same() -> None:
    assert {name for name, scheme in THEIR_SCHEMES.items() if scheme.grid.scope == "group"} == GROUPED - {MIXED}
    assert {name: scheme.activations for name, scheme in THEIR_SCHEMES.items()} | {MIXED: None} == SCHEMES
    assert set(THEIR_CALIBRATED) == CALIBRATED
    assert set(RecipeRequest.model_fields) == {field.name for field in fields(Recipe)}


@pytest.mark.parametrize("scheme", [*THEIR_SCHEMES, MIXED, "int5"])
def test_both_take_and_refuse_the_same(scheme: str) -> None:
    combinations = [{"method": method, "act_order": order} for method, order in product(METHODS, (False, True))]
    singles = [{name: value} for name, values in STRANGE.items() for value in values]
    size: dict[str, Any] = {"target_bytes": "40%"} if scheme == MIXED else {}
    for given in [{}, *(size | one for one in (*combinations, *singles))]:  # never two faults at once
        if ours(scheme=scheme, **given)[0]:
            calibrated = RecipeRequest.model_validate({"scheme": scheme, **given}).calibrated
            assert calibrated == Recipe(scheme=scheme, **given).calibrated
        assert ours(scheme=scheme, **given) == theirs(scheme=scheme, **given), (scheme, given)


def test_the_command_gets_every_member() -> None:
    asked = {
        "scheme": "int4", "method": "gptq", "group": 64, "searched": True, "damping": 0.05, "act_order": True,
        "samples": 3, "length": 17, "seed": 9, "kv": "fp8",
    }  # fmt: skip
    with click.Context(quantize) as context:
        arguments = ["source", "--out", "there", *RecipeRequest.model_validate(asked).arguments()]
        quantize.parse_args(context, arguments)
    assert asked.items() <= context.params.items()
