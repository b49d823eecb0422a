"""A multipart/form-data body, read as it comes: werkzeug's decoder, which gathers nothing, between two limits."""

from collections.abc import Iterator
from typing import IO, Final

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Event, MultipartDecoder, NeedData

from penstock.errors import RequestError, UnsupportedMediaType

_CHUNK_BYTES: Final = 64 * 1024
_MOST_BUFFERED: Final = 4 * _CHUNK_BYTES
_MOST_PARTS: Final = 20


def read_parts(stream: IO[bytes], content_type: str) -> Iterator[Event]:
    """The body's fields, files and pieces of data in order.

    Raises `UnsupportedMediaType` when it is no form, `RequestError` when it is broken off or malformed.
    """
    kind, options = parse_options_header(content_type)
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise UnsupportedMediaType(f"the body is {kind or 'of no type'}; send the file as multipart/form-data")
    decoder = MultipartDecoder(options["boundary"].encode(), _MOST_BUFFERED, max_parts=_MOST_PARTS)
    try:
        while chunk := stream.read(_CHUNK_BYTES):
            decoder.receive_data(chunk)
            yield from _ready(decoder)
        decoder.receive_data(None)
        yield from _ready(decoder)
    except (ValueError, RequestEntityTooLarge) as error:
        raise RequestError(f"the form cannot be read: {str(error)[:200].lower()}") from None


def _ready(decoder: MultipartDecoder) -> Iterator[Event]:
    while not isinstance(event := decoder.next_event(), NeedData):
        yield event
        if isinstance(event, Epilogue):
            return


def is_end(event: Event) -> bool:
    """Whether this is the last piece of its part."""
    return isinstance(event, Data) and not event.more_data
