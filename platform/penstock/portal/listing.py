"""The list of jobs as its address asks for it: filters, cursor, and links that change one of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from penstock.jobs.filters import JobFilter
from penstock.jobs.states import JobState
from penstock.problems import refuse_field

PAGE_SIZE: Final = 25


@dataclass(frozen=True, slots=True)
class Listing:
    """What the address of the list says; empty text means all."""

    status: str = ""
    model: str = ""
    tag: str = ""
    before: str = ""

    @classmethod
    def asked(cls, query: Mapping[str, str]) -> Self:
        """The listing that a query asks for. Raises `ValidationFailed` for a status that does not exist."""
        listing = cls(*(query.get(name, "").strip() for name in ("status", "model", "tag", "before")))
        known = [state.value for state in JobState]
        for state in listing.states:
            if state not in known:
                raise refuse_field("status", f"there is no status {state!r}", f"choose among {', '.join(known)}")
        return listing

    @property
    def states(self) -> list[str]:
        return [state for state in self.status.split(",") if state]

    @property
    def narrowed(self) -> bool:
        """Whether any filter is set."""
        return bool(self.status or self.model or self.tag)

    def filter(self) -> JobFilter:
        """The same for `jobs.services.list_jobs`."""
        return JobFilter([JobState(state) for state in self.states], self.model or None, self.tag or None)

    def query(self, **changes: str) -> dict[str, str]:
        """The query of this listing with some members changed; a changed filter begins at the newest job again."""
        members = {"status": self.status, "model": self.model, "tag": self.tag, "before": self.before}
        if changes and "before" not in changes:
            members["before"] = ""
        return {name: value for name, value in (members | changes).items() if value}
