"""What a sample of the shadow's jobs came to where the candidate answered them, too, for nobody's eyes. Pure.

Both versions have met the same requests, so what counts is differences within a pair: a request that breaks every
version is a failure on both sides, and one that the champion failed by chance is as likely the candidate's failure.
That takes the champion's failed jobs into the sample along with those that succeeded: with these alone the candidate
could only be worse.
"""

from dataclasses import dataclass, field, replace

from penstock.rollouts.statistics import Sample


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended on one version. `seconds` is from its start to its end, none where it began anew meanwhile."""

    failed: bool
    seconds: float | None = None
    device_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One version's jobs: failures of all, and what those took that both versions answered, of which both are known."""

    failures: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class FreeRun:
    """All jobs that the candidate has answered, or failed, by itself."""

    jobs: int = 0
    answered: int = 0
    """By both."""
    exact: int = 0
    """Of these, with the same tokens to the last."""
    timed: int = 0
    """Of these, those whose seconds count in both sides; `metered` those whose seconds of a device do."""
    metered: int = 0
    candidate: Side = field(default_factory=Side)
    champion: Side = field(default_factory=Side)
    errors: Sample = field(default_factory=Sample)
    """By job: 1 where the candidate alone failed, -1 where the champion alone did, else 0."""

    def plus(self, candidate: Ended, champion: Ended, *, exact: bool) -> "FreeRun":
        """With one more; `exact` means nothing unless both answered."""
        both = not (candidate.failed or champion.failed)
        timed = both and None not in (candidate.seconds, champion.seconds)
        metered = both and None not in (candidate.device_seconds, champion.device_seconds)
        return replace(
            self,
            jobs=self.jobs + 1,
            answered=self.answered + both,
            exact=self.exact + (both and exact),
            timed=self.timed + timed,
            metered=self.metered + metered,
            candidate=_with(self.candidate, candidate, timed=timed, metered=metered),
            champion=_with(self.champion, champion, timed=timed, metered=metered),
            errors=self.errors.plus(float(candidate.failed) - float(champion.failed)),
        )


def _with(side: Side, job: Ended, *, timed: bool, metered: bool) -> Side:
    return Side(
        side.failures + job.failed,
        side.seconds + (job.seconds or 0.0 if timed else 0.0),
        side.device_seconds + (job.device_seconds or 0.0 if metered else 0.0),
    )
