"""What work at batches needs, and how a job of a line is submitted with it."""

from dataclasses import dataclass

from penstock.db import Database
from penstock.files.storage import FileStorage
from penstock.jobs.journal import Journal
from penstock.jobs.services import PromptCounter
from penstock.quotas.gate import QuotaGate
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
