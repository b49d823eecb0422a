"""The command `penstock`. Each subcommand is imported when it is called, so that a bare client needs no platform."""

import click

import penstock
from penstock.cli.lazy import Commands, Lazy

COMMANDS = {
    "Jobs": {
        "submit": Lazy("penstock.cli.submit:submit", "Submit a job, or one for each file."),
        "get": Lazy("penstock.cli.jobs:get", "Show a job."),
        "list": Lazy("penstock.cli.jobs:list_", "List jobs, newest first."),
        "watch": Lazy("penstock.cli.watch:watch", "Follow a job live."),
        "cancel": Lazy("penstock.cli.jobs:cancel", "Cancel jobs; what they wrote is kept."),
        "retry": Lazy("penstock.cli.jobs:retry", "Submit a finished job's request again."),
        "delete": Lazy("penstock.cli.jobs:delete", "Delete finished jobs for good."),
        "jobs": Lazy("penstock.cli.bulk:jobs", "Cancel or retry all jobs that filters name."),
        "batch": Lazy("penstock.cli.batches:batch", "Run files of requests, a line each."),
        "events": Lazy("penstock.cli.events:events", "Show all that happened, or follow it."),
        "feedback": Lazy("penstock.cli.feedback:feedback", "Judge a job's answer, or see what was said."),
        "calibration": Lazy("penstock.cli.calibration:calibration", "Fetch the text of stored jobs, to quantize by."),
        "webhooks": Lazy("penstock.cli.webhooks:webhooks", "Keep webhook endpoints; see and replay deliveries."),
    },
    "Operation": {
        "workers": Lazy("penstock.cli.operation:workers", "See the workers, and drain one."),
        "deployments": Lazy("penstock.cli.deployments:deployments", "Say which workers host which versions."),
        "dead-letters": Lazy("penstock.cli.operation:dead_letters", "Look at jobs that were given up."),
        "replay": Lazy("penstock.cli.replay:replay", "Run stored jobs against another version."),
        "replays": Lazy("penstock.cli.replay:replays", "See replays of stored jobs, and cancel one."),
        "rollout": Lazy("penstock.cli.rollout:rollout", "Let a version earn its place, gate by gate."),
    },
    "Platform": {
        "up": Lazy("penstock.cli.up:up", "Run everything on this machine.", "platform,embedded,worker"),
        "env": Lazy("penstock.cli.up:env", "Print the settings of what runs here, for a shell.", "platform"),
        "demo": Lazy("penstock.cli.demo:demo", "Run everything and put real jobs through it.", "all"),
        "web": Lazy("penstock.cli.server:web", "Run the API and the portal.", "platform"),
        "control": Lazy("penstock.cli.server:control", "Run the control process.", "platform"),
        "migrate": Lazy("penstock.cli.server:migrate", "Bring the database to this version.", "platform"),
        "keys": Lazy("penstock.cli.keys:keys", "Create, list and revoke API keys.", "platform"),
        "users": Lazy("penstock.cli.users:users", "Let people in, change and remove them.", "platform"),
        "tenants": Lazy("penstock.cli.tenants:tenants", "Make, limit, suspend and erase organisations.", "platform"),
        "audit": Lazy("penstock.cli.tenants:audit", "Show who changed what.", "platform"),
        "prices": Lazy("penstock.cli.prices:prices", "Say what models cost and tenants may spend.", "platform"),
        "models": Lazy("penstock.cli.models:models", "Register model versions and see them.", "platform"),
    },
}
PLUGIN_HELP = {
    "distil": "Teach a small model what a large one says.",
    "engine": "Look into an engine: who ran when.",
    "evaluate": "Hold a model against another.",
    "prune": "Write a model without what matters least.",
    "qat": "Write a smaller version that was trained as it will run.",
    "quantize": "Write a smaller version of a model.",
    "worker": "Run a worker with its engine.",
}


@click.group(
    cls=Commands,
    commands_by_section=COMMANDS,
    plugin_help=PLUGIN_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(penstock.__version__, prog_name="penstock")
def main() -> None:
    """Penstock: asynchronous LLM generation jobs on your own GPUs.

    The commands under Jobs talk to a server: PENSTOCK_URL and PENSTOCK_API_KEY say which, or --url and --api-key.
    """
