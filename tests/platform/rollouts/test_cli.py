"""`penstock rollout` as it is called, alone and against the real application, and the picture that it draws."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from penstock.auth.services import Scope, create_api_key
from penstock.cli import main
from penstock.cli.rollout_view import bar
from penstock.db import Database
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.lead import take
from penstock.rollouts.models import Rollout
from penstock.rollouts.picture import Panel, draw
from penstock.rollouts.policy import Policy, read_policy
from penstock.rollouts.rehearsal import Passage, Rehearsal
from penstock.rollouts.services import conclude
from penstock.rollouts.states import Position, State
from penstock.rollouts.statistics import Sample, Tally
from penstock.rollouts.verdicts import Verdict

from tests.factories import make_deployment, make_tenant, make_worker, submit_job
from tests.platform.cli.conftest import quiet_server
from tests.platform.client.real import app, url

__all__ = ["app", "quiet_server", "url"]  # fixtures
Call = Callable[..., Result]
QUICK = "{shadow: null, latency: null, canary: {steps: [{share: 0.5, error_margin: 0.2, slow_margin: 0.2}]}}"


@pytest.fixture
def call() -> Call:
    return lambda *arguments: CliRunner().invoke(main, ["rollout", *arguments])


@pytest.fixture
def quick(tmp_path: Path) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(QUICK)
    return str(path)


def test_the_policy_is_printed_in_full_and_can_be_read_again(call: Call, quick: str) -> None:
    printed = call("policy", "check").stdout
    assert printed.startswith(f"# version {Policy().version}\n")
    assert read_policy(printed) == Policy()
    assert read_policy(call("policy", "check", quick).stdout) == read_policy(QUICK)


def test_a_wrong_policy_ends_with_one_line(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("canary: {unit: planet}")
    answer = call("policy", "check", str(path))
    assert answer.exit_code == 1
    assert re.fullmatch(r"Error: canary.unit: is none of the allowed values; it must be .*\n", answer.stderr)


def test_a_rehearsal_says_what_a_policy_costs(call: Call, quick: str, tmp_path: Path) -> None:
    picture = tmp_path / "cost.svg"
    arguments = [
        "simulate",
        quick,
        "--effect",
        "errors=20x",
        "--jobs",
        "2000",
        "--runs",
        "20",
        "--picture",
        str(picture),
    ]
    answer = call(*arguments)
    assert answer.exit_code == 0, answer.output
    assert (
        f"Policy {read_policy(QUICK).version}: 20 runs of up to 2,000 jobs, of which the champion fails 1%"
        in answer.stdout
    )
    harmless, harmful = answer.stdout.split("without harm:\n")[1].split("with errors=20x:\n")
    assert re.search(r"(100|95|90)\.0% pass, half within [0-9]+ jobs", harmless)
    median = re.search(r"100\.0% are rolled back, half within ([0-9]+) jobs \(([0-9]+) on the candidate\)", harmful)
    assert median
    assert 5 < int(median[2]) < int(median[1]) < 200
    ElementTree.parse(picture)
    assert call(*arguments).stdout == answer.stdout, "the same seed, the same figures"


@pytest.mark.parametrize("effect", ["errors", "errors=fast", "errors=0x", "size=2", "kld=3", "latency=nan"])
def test_an_effect_that_is_none_is_refused(call: Call, effect: str) -> None:
    answer = call("simulate", "--effect", effect)
    assert answer.exit_code == 2
    assert "such as errors=10x; there are errors up to 1000, latency" in answer.stderr


@pytest.mark.parametrize("part", ["0", "100%", "many", "1.5"])
def test_an_error_rate_that_is_none_is_refused(call: Call, part: str) -> None:
    answer = call("simulate", "--effect", "errors=2x", "--champion-error", part)
    assert answer.exit_code == 2
    assert "such as 1% or 0.01" in answer.stderr


def areas(svg: str) -> dict[str, list[list[tuple[float, float]]]]:
    """Corners of the areas of each colour, panel by panel."""
    found: dict[str, list[list[tuple[float, float]]]] = {}
    for points, colour in re.findall(r'<polygon points="([^"]+)" fill="var\(--(\w+)\)"', svg):
        corners = [(float(x), float(y)) for x, y in (point.split(",") for point in points.split())]
        found.setdefault(colour, []).append(corners)
    return found


def test_the_picture_shows_which_part_of_the_runs_is_where() -> None:
    step = Position(State.CANARY, 0)
    passed = (Passage(step, Verdict.PROMOTE, 1500, 700),)
    back = (Passage(step, Verdict.ROLLBACK, 4000, 2000),)
    svg = draw("A <policy>", [Panel("name", ["note"], Rehearsal((step,), (passed, passed, passed, back), 10_000))])
    assert "A &lt;policy&gt;" in svg
    found = areas(svg)
    heights = {
        colour: abs(corners[0][-len(corners[0]) // 2][1] - corners[0][-len(corners[0]) // 2 - 1][1])
        for colour, corners in found.items()
    }
    assert heights["passed"] == pytest.approx(3 * heights["back"], rel=0.01), "at the right end, all have ended"
    assert heights["tone1"] == 0
    left = {colour: abs(corners[0][0][1] - corners[0][-1][1]) for colour, corners in found.items()}
    assert left["passed"] == left["back"] == 0 < left["tone1"]


SEEN = Evidence(
    step_units=40,
    units=Tally().plus(0.5, 40, 41),
    failures=Tally().plus(0.5, 1, 0),
    pairs={"errors": Sample(((0, 39), (1000, 1)))},
)


@pytest.fixture
def asking(call: Call, url: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command with an operator's key, and two versions of a model."""
    with database.transaction() as session:
        make_deployment(session)
        make_worker(session, make_deployment(session, version="2", champion=False))
        scopes, tenant = (Scope.OPERATOR,), make_tenant(session)
        key = create_api_key(session, tenant_id=tenant.id, name="Ann", scopes=scopes, environment="test")[1]
    monkeypatch.setenv("PENSTOCK_URL", url)
    monkeypatch.setenv("PENSTOCK_API_KEY", key)

    def successful(*arguments: str) -> Result:
        answer = call(*arguments)
        assert answer.exit_code == 0, answer.output
        return answer

    return successful


def judge(database: Database, rollout_id: str, evidence: Evidence) -> None:
    with database.transaction() as session:
        lead = take(session, "rollouts", "test", 600)
        assert lead
        assert conclude(session, lead, rollout_id, session.get_one(Rollout, rollout_id).fence, evidence)


def test_an_operator_starts_looks_at_and_moves_a_rollout(
    asking: Call, call: Call, quick: str, database: Database
) -> None:
    Path(quick).write_text(QUICK.replace("shadow: null", "shadow: null, offline: null"))
    assert asking("policy", "set", "tiny", quick, "--reason", "ours").stdout.startswith("number 1, version ")
    assert '"offline": null' in asking("policy", "get", "tiny").stdout
    rollout_id = asking("start", "tiny", "2", "--reason", "int4 at last").stdout.strip()
    assert call("start", "tiny", "2").stderr.startswith("Error: model: a rollout of tiny is under way")
    judge(database, rollout_id, SEEN)
    with database.transaction() as session:
        job = submit_job(session, make_tenant(session))
    (row,) = asking("jobs", rollout_id).stdout.splitlines()
    arm = "candidate" if job.model_version == "2" else "champion"
    assert row.split("\t")[:5] == [job.id, arm, "canary step 1", job.model_version, "queued"]
    assert asking("jobs", rollout_id, "--arm", arm, "--status", "failed").stdout == ""
    assert json.loads(asking("jobs", rollout_id, "--json").stdout)["rerouted"] is False

    shown = asking("show", rollout_id).stdout
    head, course, *_ = shown.splitlines()
    assert re.fullmatch(
        rf"{rollout_id} tiny 2 against 1, canary step 1, 50% of jobs: hold, some [0-9,]+ jobs more", head
    )
    assert course == "✔ registered → ▶ canary step 1 → promoted"
    assert re.search(
        r"errors +hold +·*━*0━+┃━+·* +errors: between -0\.\d+ and 0\.\d+ after 40, not yet below 0.2 +[0-9]", shown
    )
    assert re.search(r"candidate: 40 units, 1 failed \(0\.\d\d% to \d+\.\d\d%\), 0 slow", shown)
    assert "start to canary, by Ann: int4 at last" in shown
    (row,) = asking("list", "--status", "canary").stdout.splitlines()
    assert row.split("\t")[:5] == [rollout_id, "tiny", "2 against 1", "canary step 1", "50%"]

    assert "paused in canary" in asking("pause", rollout_id, "--reason", "lunch").stdout
    refused = call("promote", rollout_id, "--reason", "now")
    assert (refused.exit_code, "paused takes no promote" in refused.stderr) == (1, True)
    assert "canary step 1, 50%" in asking("resume", rollout_id, "--reason", "back").stdout
    assert "rejected" in asking("rollback", rollout_id, "--reason", "enough").stdout.replace("rolled_back", "rejected")
    watched = call("watch", rollout_id)
    assert (watched.exit_code, watched.stdout.count(rollout_id)) == (1, 1), "it was not promoted"
    moves = [row.split("\t")[3] for row in asking("decisions", "--rollout", rollout_id).stdout.splitlines()]
    assert moves == ["4 rollback", "3 resume", "2 pause", "1 start"]
    assert asking("flips", rollout_id).stdout == ""
    assert call("pause", rollout_id).exit_code == 2, "a move needs its reason"


@pytest.mark.parametrize(
    ("low", "high", "drawn"),
    [
        (-1.0, 1.0, "━━━━━━━━━━━━━━━━0━━┃━━━━━━━━━━━━━"),
        (-0.1, 0.1, "·····━━━━━━0━━━━━····┃···········"),
        (0.3, 0.4, "···········0·········┃·····━━━━━━"),
    ],
)
def test_the_bar_shows_the_interval_zero_and_the_margin(low: float, high: float, drawn: str) -> None:
    assert bar(low, high, 0.2) == drawn
