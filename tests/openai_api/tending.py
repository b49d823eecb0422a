"""What a control process does for batches, in a thread of the tests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from penstock.batches.tending import BatchTender
from penstock.batches.workshop import Workshop

from tests.openai_api.conftest import House


@contextmanager
def tended(house: House) -> Iterator[None]:
    """Batches of the house go on while the block does."""
    world, stop = house.world, threading.Event()
    tender = BatchTender(Workshop.open(world.settings, world.database, world.redis))
    thread = threading.Thread(target=tender.run, args=(stop,), name="tender")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
