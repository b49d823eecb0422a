"""What work at batches needs, and how a job of a line is submitted with it."""

from dataclasses import dataclass
from typing import Self

from redis import Redis

from penstock.db import Database
from penstock.files.storage import FileStorage
from penstock.ids import new_id
from penstock.jobs.journal import Journal
from penstock.jobs.services import PromptCounter
from penstock.quotas.counters import Counters
from penstock.quotas.gate import QuotaGate
from penstock.registry.tokenizer_cache import TokenizerCache
from penstock.settings import Settings


@dataclass(frozen=True, slots=True)
class Workshop:
    """The doors of a process that works at batches."""

    settings: Settings
    database: Database
    storage: FileStorage
    prompts: PromptCounter
    quotas: QuotaGate
    journal: Journal

    @classmethod
    def open(cls, settings: Settings, database: Database, redis: Redis) -> Self:
        """The workshop of a control process. Nothing of it needs closing but what it was given."""
        return cls(
            settings=settings,
            database=database,
            storage=FileStorage.of(settings),
            prompts=TokenizerCache(),
            quotas=QuotaGate(Counters(redis), settings),
            journal=Journal(redis, publisher=new_id("control")),
        )
