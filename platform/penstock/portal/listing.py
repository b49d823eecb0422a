"""The list of jobs as its address asks for it: filters, cursor, and links that change one of them.

The filters have the names that they have in the API's query, and `within` beside them, which is a time that ends now.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Self

from pydantic import ValidationError

from penstock.clock import iso, utc_now
from penstock.jobs.filters import JobFilter
from penstock.jobs.queries import JobSelection
from penstock.jobs.states import JobState
from penstock.problems import explain_validation, refuse_field

PAGE_SIZE: Final = 25
SPANS: Final[Mapping[str, tuple[str, timedelta]]] = {
    "1h": ("Last hour", timedelta(hours=1)),
    "24h": ("Last 24 hours", timedelta(hours=24)),
    "7d": ("Last 7 days", timedelta(days=7)),
    "30d": ("Last 30 days", timedelta(days=30)),
}
_NAMES: Final = (
    "status", "model", "version", "tag", "class", "batch", "key", "error",
    "created_after", "created_before", "finished_after", "finished_before",
)  # fmt: skip
_CONTROLLED: Final = ("status", "model", "tag", "class", "within")
"""Filters with a control of their own; the others come by links and are shown to be taken away."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What the address of the list says; what is missing means all."""

    members: Mapping[str, str] = field(default_factory=dict)
    before: str = ""

    @classmethod
    def asked(cls, query: Mapping[str, str]) -> Self:
        """The listing that a query asks for. Raises `ValidationFailed` for what no job can have."""
        given = {name: query.get(name, "").strip() for name in (*_NAMES, "within")}
        listing = cls({name: value for name, value in given.items() if value}, query.get("before", "").strip())
        known = [state.value for state in JobState]
        for state in listing.states:
            if state not in known:
                raise refuse_field("status", f"there is no status {state!r}", f"choose among {', '.join(known)}")
        if listing["within"] not in ("", *SPANS):
            raise refuse_field("within", "is no time that this list knows", f"choose among {', '.join(SPANS)}")
        listing.selection(utc_now())
        return listing

    def __getitem__(self, name: str) -> str:
        return self.members.get(name, "")

    @property
    def states(self) -> list[str]:
        return [state for state in self["status"].split(",") if state]

    @property
    def narrowed(self) -> bool:
        """Whether any filter is set."""
        return bool(self.members)

    @property
    def further(self) -> dict[str, str]:
        """The filters that have no control of their own."""
        return {name: value for name, value in self.members.items() if name not in _CONTROLLED}

    def selection(self, now: datetime) -> JobSelection:
        """The same as the API's query, with `within` as a moment."""
        return selection_of(self.fixed(now))

    def fixed(self, now: datetime) -> dict[str, str]:
        """The filters with `within` as the moment that it means now, so that they mean the same later."""
        fixed = {name: value for name, value in self.members.items() if name != "within"}
        if self["within"]:
            fixed["created_after"] = iso(now - SPANS[self["within"]][1]) or ""
        return fixed

    def filter(self) -> JobFilter:
        """The same for `jobs.services.list_jobs`."""
        return self.selection(utc_now()).as_filter()

    def query(self, **changes: str) -> dict[str, str]:
        """The query of this listing with some members changed; a changed filter begins at the newest job again."""
        members = {**self.members, "before": self.before}
        if changes and "before" not in changes:
            members["before"] = ""
        return {name: value for name, value in (members | changes).items() if value}


def selection_of(members: Mapping[str, str]) -> JobSelection:
    """The filters as the API reads them. Raises `ValidationFailed`."""
    try:
        return JobSelection.model_validate(dict(members))
    except ValidationError as error:
        raise explain_validation(error) from None
