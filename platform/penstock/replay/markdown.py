"""A replay's report as a page of Markdown. Needs nothing but the report's own document."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

_SCORED: Final = (
    ("answers", "answers"),
    ("tokens", "tokens"),
    ("mean_kld", "mean divergence, nats a token"),
    ("median_kld", "its median, by answer"),
    ("p99_kld", "its 99th percentile"),
    ("disagreement", "tokens at which the first choices differ"),
    ("alike", "answers at none of whose tokens they differ"),
    ("mean_rank", "mean rank of the answer's token"),
    ("logprob_difference", "change of its log probability"),
)
_SIDES: Final = (
    ("mean_tokens", "tokens of an answer"),
    ("mean_seconds", "seconds of a job"),
    ("mean_first_token_seconds", "seconds to the first token"),
    ("device_seconds", "seconds of the device, all answers"),
    ("valid", "answers that have the form that was asked for"),
)
_PARTS: Final = frozenset({"disagreement", "alike", "valid", "exact"})


def markdown_of(report: Mapping[str, Any]) -> str:
    """The page, which ends with a newline."""
    replay = report["replay"]
    title = f"# {replay['model']}: version {replay['candidate']} on the jobs of version {replay['reference']}"
    settled = f"{replay['done']} of {replay['total']} jobs were compared, and {replay['lost']} could not be."
    blocks = [title, f"Replay `{replay['id']}` is {replay['status']}. {settled}"]
    if scored := report["scored"]:
        rows = [[told, _written(name, scored[name])] for name, told in _SCORED]
        blocks += ["## The stored answers, scored by both", _table(["", "found"], rows)]
    if answered := report["answered"]:
        blocks += _answered(answered)
    if report["problems"]:
        rows = [[each["problem"], str(each["jobs"])] for each in report["problems"]]
        blocks += ["## Not compared", _table(["why", "jobs"], rows)]
    if report["furthest"]:
        rows = [
            [f"`{each['job']}`", _written("mean_kld", each["mean_kld"]), _written("alike", each["disagreement"])]
            for each in report["furthest"]
        ]
        blocks += ["## Furthest apart", _table(["job", "mean divergence", "first choices that differ"], rows)]
    return "\n\n".join(blocks) + "\n"


def _answered(answered: Mapping[str, Any]) -> list[str]:
    told = f"{answered['answers']} requests were answered anew, {answered['failed']} failed"
    errors = ", ".join(f"{code}: {jobs}" for code, jobs in answered["errors"].items())
    same = f"{_written('exact', answered['exact'])} of the answers are the stored ones to the last token"
    where = answered["mean_first_difference"]
    differ = f"; others differ from token {where:.1f} on, in the mean" if where is not None else ""
    rows = [[name, *(_written(key, answered[side][key]) for side in ("stored", "new"))] for key, name in _SIDES]
    return [
        "## Answered anew",
        f"{told}{f' ({errors})' if errors else ''}. {same}{differ}.",
        _table(["", "stored", "new"], rows),
    ]


def _written(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name in _PARTS:
        return f"{value:.2%}"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
