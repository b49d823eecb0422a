"""What every model of a request body is: exact."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """No unknown field, no silent conversion between types."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        serialize_by_alias=True,
        hide_input_in_errors=True,  # an error's text may end in a log, where no prompt may be
    )
