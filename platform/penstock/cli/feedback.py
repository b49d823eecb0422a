"""`penstock feedback`: what is thought of a job's answer."""

import click

from penstock.cli.options import with_client
from penstock.cli.render import printable
from penstock.client import Client, Feedback


@click.command()
@click.argument("job_id")
@click.option("--score", type=click.FloatRange(0, 1), help="From 0, useless, to 1, could not be better.")
@click.option("--label", help="A category of yours, such as `accepted`.")
@click.option("--comment", help="In words.")
@click.option("--choice", type=click.IntRange(min=0), help="Which choice it is about; the whole answer without it.")
@click.option("--user", help="Who judges.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one judgement a line.")
@with_client
def feedback(
    client: Client,
    job_id: str,
    score: float | None,
    label: str | None,
    comment: str | None,
    choice: int | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Judge the answer of a finished job by --score, --label or both; without either, show what was said of it."""
    if score is None and label is None:
        if comment is not None:
            raise click.UsageError("a comment goes with --score or --label")
        said = list(client.jobs.feedback(job_id))
    else:
        given = client.jobs.give_feedback(job_id, score=score, label=label, comment=comment, choice=choice, user=user)
        said = [given]
    for each in said:
        click.echo(each.model_dump_json() if as_json else _line(each))


def _line(said: Feedback) -> str:
    happened = said.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    cells = (said.choice, said.score, said.label, said.user, said.comment)
    return printable("\t".join([said.id, happened, *("-" if cell is None else str(cell) for cell in cells)]))
