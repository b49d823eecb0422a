"""The client's public surface is what docs/client.md says, and it needs nothing of the platform."""

import inspect
import json
import re
import subprocess
import sys

import penstock
import pytest
from penstock import client
from penstock.cli import COMMANDS, main
from penstock.client import Client
from penstock.client.batches import Batches
from penstock.client.bulk import Bulk
from penstock.client.endpoints import Webhooks
from penstock.client.files import Files
from penstock.client.jobs import Jobs
from penstock.client.keys import Keys
from penstock.client.operation import Operation
from penstock.client.replays import Replays
from penstock.client.rollouts import Rollouts

from tests.conftest import ROOT

PAGE = (ROOT / "docs/client.md").read_text()
SERVER_PACKAGES = (
    "alembic", "apiflask", "argon2", "celery", "flask", "kombu", "mlflow", "msgspec", "psycopg", "pydantic_settings",
    "redis", "sqlalchemy", "structlog", "tokenizers", "torch", "transformers", "uuid_utils", "werkzeug",
)  # fmt: skip


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def public(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def documented_calls() -> dict[str, set[str]]:
    """Each documented call of the client with its arguments' names."""
    calls = re.findall(r"^\| `client\.([\w.]+)\(([^)]*)\)` \|", section("Client"), re.MULTILINE)
    return {name: {word.strip() for word in arguments.split(",") if word.strip()} for name, arguments in calls}


def test_every_name_is_documented() -> None:
    names = set(client.__all__)
    missing = {name for name in names if f"`{name}`" not in PAGE and f"`{name}(" not in PAGE}
    assert not missing
    named = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?`) \|", section("Types"), re.MULTILINE)))
    assert set(named) <= names


def test_every_call_is_documented_with_its_arguments() -> None:
    calls = {f"jobs.{name}": getattr(Jobs, name) for name in public(Jobs)}
    kinds = {
        "webhooks": Webhooks,
        "keys": Keys,
        "files": Files,
        "batches": Batches,
        "bulk": Bulk,
        "operation": Operation,
        "replays": Replays,
        "rollouts": Rollouts,
    }
    for place, kind in kinds.items():
        calls |= {f"{place}.{name}": getattr(kind, name) for name in public(kind)}
    calls |= {name: getattr(Client, name) for name in public(Client)}
    arguments = {name: set(inspect.signature(call).parameters) - {"self"} for name, call in calls.items()}
    assert documented_calls() == arguments


def test_the_client_is_made_as_documented() -> None:
    written = re.search(r"^`Client\((.*)\)`$", PAGE, re.MULTILINE)
    assert written is not None
    signature = str(inspect.signature(Client)).removesuffix(" -> None")
    assert re.sub(r": [\w |]+?(?= ?=)", "", signature).replace(" = ", "=").strip("()") == written[1]


def test_every_command_is_documented() -> None:
    rows = re.findall(r"^\| `penstock ([\w-]+)` \|", section("Command line"), re.MULTILINE)
    assert sorted(rows) == sorted(name for part in main.sections.values() for name in part)


def test_penstock_gives_the_client_and_little_else() -> None:
    assert penstock.Client is Client
    with pytest.raises(AttributeError, match="nothing_such"):
        penstock.nothing_such  # noqa: B018 - the access is the test


def run_bare(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python where no package of the server's can be imported."""
    block = f"import sys\nfor name in {SERVER_PACKAGES!r}: sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", block + code], capture_output=True, text=True, timeout=60
    )


def test_the_client_runs_where_only_the_bare_install_is() -> None:
    code = "import penstock\nwith penstock.Client('http://127.0.0.1:1', 'psk_x') as client: print(client.url)"
    result = run_bare(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "http://127.0.0.1:1\n", "")


@pytest.fixture(scope="module")
def bare_helps() -> dict[str, tuple[int, str, str]]:
    """What `penstock COMMAND --help` answers where only the bare install is: exit status, output, errors."""
    code = """
import json
from click.testing import CliRunner
from penstock.cli import main
answers = {}
for command in [None, *main.list_commands(None)]:
    result = CliRunner().invoke(main, [command, "--help"] if command else ["--help"], prog_name="penstock")
    answers[command or ""] = (result.exit_code, result.stdout, result.stderr)
print(json.dumps(answers))
"""
    helps: dict[str, tuple[int, str, str]] = json.loads(run_bare(code).stdout)
    return helps


@pytest.mark.parametrize("command", ["", *COMMANDS["Jobs"], *COMMANDS["Operation"]])
def test_the_jobs_commands_run_where_only_the_bare_install_is(
    bare_helps: dict[str, tuple[int, str, str]], command: str
) -> None:
    exit_code, output, errors = bare_helps[command]
    assert (exit_code, errors) == (0, "")
    assert f"penstock {command}".strip() in output


@pytest.mark.parametrize("command", [*COMMANDS["Platform"], "worker"])
def test_the_others_say_which_extras_they_need(bare_helps: dict[str, tuple[int, str, str]], command: str) -> None:
    exit_code, _, errors = bare_helps[command]
    assert exit_code == 1
    (line,) = errors.splitlines()
    assert line.startswith(f"Error: `penstock {command}` needs ")
    assert "pip install 'penstock[" in line


@pytest.mark.parametrize("name", main.list_commands(None))  # type: ignore[arg-type]  # ours needs no context
def test_the_help_page_says_what_the_command_itself_says(name: str) -> None:
    """The one-line helps are written down so that nothing need be imported for them; here everything is."""
    command = main.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    (lazy,) = [section[name] for section in main.sections.values() if name in section]
    assert command.help
    assert lazy.short_help.endswith(".")
    assert len(lazy.short_help) < 60
