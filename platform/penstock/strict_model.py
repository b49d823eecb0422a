"""What every model of a request body is: exact."""

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError


class Strict(BaseModel):
    """No unknown field, no silent conversion between types."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        serialize_by_alias=True,
        hide_input_in_errors=True,  # an error's text may end in a log, where no prompt may be
    )


def wrong_at(field: str, remedy: str) -> ValidationError:
    """What a validator raises to name a field within what it judges, and what would be right there."""
    told = PydanticCustomError("value_error", "{error}", {"error": remedy})
    return ValidationError.from_exception_data("request", [InitErrorDetails(type=told, loc=(field,), input=None)])
