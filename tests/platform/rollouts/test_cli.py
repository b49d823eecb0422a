"""`penstock rollout` as it is called, and the picture that it draws."""

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from penstock.cli import main
from penstock.rollouts.picture import Panel, draw
from penstock.rollouts.policy import Policy, read_policy
from penstock.rollouts.rehearsal import Passage, Rehearsal
from penstock.rollouts.states import Position, State
from penstock.rollouts.verdicts import Verdict

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
    printed = call("policy").stdout
    assert printed.startswith(f"# version {Policy().version}\n")
    assert read_policy(printed) == Policy()
    assert read_policy(call("policy", quick).stdout) == read_policy(QUICK)


def test_a_wrong_policy_ends_with_one_line(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("canary: {unit: planet}")
    answer = call("policy", str(path))
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
