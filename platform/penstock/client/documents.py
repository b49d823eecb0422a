"""Base of what the server answers with: frozen models, which keep members that they do not know."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from penstock.client.errors import UnexpectedAnswer


class Document(BaseModel):
    """Base of them all."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)


AnyDocument = TypeVar("AnyDocument", bound=Document)


def parse(kind: type[AnyDocument], document: object) -> AnyDocument:
    """The server's answer as a model. Raises `UnexpectedAnswer` naming the first member that is not as it should be."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UnexpectedAnswer(f"the server's {kind.__name__} is not as expected: {place}: {first['msg']}") from error
