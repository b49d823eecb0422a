"""The sections of the navigation, and which of their entries a person sees."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Final

from penstock.auth.models import User
from penstock.auth.services import Role


@dataclass(frozen=True, slots=True)
class Entry:
    """One page of the navigation. `name` is what its pages set `here` to, and its icon's name."""

    name: str
    label: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class Section:
    """Entries under one heading; with a role, for people who have it alone."""

    label: str
    entries: Sequence[Entry]
    role: Role | None = None


SECTIONS: Final = (
    Section(
        "Work",
        (
            Entry("playground", "Playground", "portal_playground.index"),
            Entry("jobs", "Jobs", "portal_jobs.index"),
            Entry("batches", "Batches", "portal_batches.index"),
            Entry("files", "Files", "portal_files.index"),
        ),
    ),
    Section(
        "Account",
        (
            Entry("keys", "API keys", "portal_keys.index"),
            Entry("webhooks", "Webhooks", "portal_webhooks.index"),
            Entry("usage", "Usage", "portal_usage.index"),
        ),
    ),
    Section(
        "Operate",
        (
            Entry("overview", "Overview", "portal_overview.index"),
            Entry("workers", "Workers", "portal_workers.index"),
            Entry("models", "Models", "portal_models.index"),
            Entry("rollouts", "Rollouts", "portal_rollouts.index"),
            Entry("letters", "Dead letters", "portal_letters.index"),
            Entry("tenants", "Tenants", "portal_tenants.index"),
            Entry("audit", "Audit", "portal_audit.index"),
            Entry("health", "Health", "portal_health.index"),
        ),
        role=Role.OPERATOR,
    ),
)


def sections_for(user: User | None, endpoints: Container[str]) -> list[Section]:
    """The sections that this person sees, each with those of its entries that the application serves."""
    role = user.role if user is not None else None
    return [
        Section(section.label, entries, section.role)
        for section in SECTIONS
        if section.role in (None, role)
        and (entries := tuple(entry for entry in section.entries if entry.endpoint in endpoints))
    ]
