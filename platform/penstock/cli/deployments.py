"""`penstock deployments`: for operators' keys."""

from typing import Any

import click

from penstock.cli.options import with_client
from penstock.cli.render import print_rows
from penstock.client import Client, Deployment

_MIB = 1 << 20


@click.group()
def deployments() -> None:
    """See which workers host which versions, and say which should."""


@deployments.command("list")
@with_client
def list_deployments(client: Client) -> None:
    """List the versions that workers host: what waits for each, where it should be, and where it is."""
    print_rows(
        ("id", "version", "status", "routes", "waiting", "running", "wanted", "hosts"),
        [
            (
                found.id,
                f"{found.model_name}:{found.model_version}",
                found.status,
                " ".join(found.routes) or "-",
                str(found.waiting_jobs),
                str(found.running_jobs),
                _wanted(found),
                " ".join(map(_host, found.hosts)) or found.nowhere or "-",
            )
            for found in client.operation.deployments()
        ],
    )


@deployments.command()
@click.argument("deployment_id")
@with_client
def show(client: Client, deployment_id: str) -> None:
    """Show a deployment with its hosts, their memory and times, as JSON."""
    click.echo(client.operation.deployment(deployment_id).model_dump_json(indent=2))


@deployments.command()
@click.argument("deployment_id")
@click.option("--worker", "workers", multiple=True, help="A host's name, or a label of workers; all without it.")
@click.option("--replicas", type=click.IntRange(min=0), help="On how many of them; all without it, 0 is nowhere.")
@click.option("--kv-share", type=float, help="Share of a device's memory for K and V; by traffic without it.")
@click.option("--mode", type=click.Choice(["warm", "cold"]), help="cold: loaded while jobs wait for it.")
@click.option("--idle-seconds", type=float, help="How long a cold version stays without a job.")
@with_client
def place(client: Client, deployment_id: str, workers: tuple[str, ...], **others: Any) -> None:
    """Say where and how a version is to be hosted, as a whole: what is left out has its default."""
    found = client.operation.place_deployment(deployment_id, workers=workers or None, **others)
    click.echo(f"{found.id} {_wanted(found)}{f': {found.nowhere}' if found.nowhere else ''}")


def _wanted(found: Deployment) -> str:
    """Such as `2 of h200|east, cold, kv 0.25`."""
    placement = found.placement
    where = "|".join(placement.workers) if placement.workers is not None else "everywhere"
    count = f"{placement.replicas} of " if placement.replicas is not None else ""
    share = f", kv {placement.kv_share:g}" if placement.kv_share is not None else ""
    return f"{count}{where}, {placement.mode}{share}"


def _host(host: dict[str, Any]) -> str:
    """Such as `gpu-7=ready(kv 512 MiB)`."""
    told = host["error"] or (f"kv {host['kv_bytes'] / _MIB:.0f} MiB" if host["kv_bytes"] else "")
    return f"{host['hostname']}={host['status']}" + (f"({told})" if told else "")
