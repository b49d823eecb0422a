"""`penstock prices`, on a real database."""

import pytest

from tests.platform.cli.conftest import Call
from tests.platform.cli.test_keys import server_call

__all__ = ["server_call"]
GIVEN = ("--currency", "EUR", "--input", "0.5", "--cached", "0.05", "--output", "1.5")


def test_a_price_is_set_and_listed(server_call: Call) -> None:
    made = server_call("prices", "set", "tiny", *GIVEN, "--version", "2", "--from", "2030-01-31T12:00:00+0100")
    assert made.exit_code == 0, made.output
    assert server_call("prices", "set", "other", *GIVEN).exit_code == 0
    listed = [line.split("\t")[1:] for line in server_call("prices", "list").stdout.splitlines()]
    amounts = ["EUR", "0.500000000", "0.050000000", "1.500000000", "0.000000000"]
    assert listed[0][:-1] == ["other", "-", *amounts]
    assert listed[1] == ["tiny", "2", *amounts, "2030-01-31T11:00:00.000Z"]
    assert len(server_call("prices", "list", "--model", "tiny").stdout.splitlines()) == 1


def test_a_tenants_budget_is_set_and_shown(server_call: Call) -> None:
    assert server_call("prices", "budget", "default").stdout == ""
    row = "EUR\t12.500000000\t0.000000000\t0.000000000\n"
    assert server_call("prices", "budget", "default", "12.5", "EUR").stdout == row
    assert server_call("prices", "budget", "default").stdout == row
    assert "budget.set" in server_call("audit").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["set", "tiny", *GIVEN, "--device-second", "-1"], "device_second"),
        (["set", "tiny", *GIVEN, "--currency", "euro"], "currency"),
        (["budget", "default", "1"], "give AMOUNT and CURRENCY"),
        (["budget", "absent", "1", "EUR"], "no tenant 'absent'"),
    ],
)
def test_what_is_wrong_is_said(server_call: Call, arguments: list[str], says: str) -> None:
    result = server_call("prices", *arguments)
    assert result.exit_code != 0
    assert says in result.stderr
