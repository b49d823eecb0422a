"""A rollout as it goes on: each verdict as it falls, with the figures that it fell on."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import click
import httpx
from rich.console import Console

_PAUSE_SECONDS: Final = 0.3
_GATE_SECONDS: Final = 300.0  # a gate of the demo that takes longer is stuck
_ENDS: Final = ("promoted", "rejected", "rolled_back", "aborted")


@dataclass(frozen=True)
class Ending:
    """How a rollout ended, as the ledger tells it; `seconds` since it began."""

    version: str
    status: str
    seconds: float
    rerouted: int
    """Jobs that waited for the version when the last move was made, and went elsewhere by it."""


@dataclass
class Operator:
    """Someone with an operator's key, over REST."""

    url: str
    key: str
    console: Console
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """One line of the timeline, after the seconds since the beginning."""
        self.console.out(f"{time.monotonic() - self.began:6.1f} s  {text}", highlight=False)

    def start(self, model: str, version: str, policy: dict[str, Any]) -> str:
        """Start a rollout as soon as the version is known here; its id."""
        body = {"model": model, "version": version, "policy": policy, "reason": "the demo"}
        deadline = time.monotonic() + _GATE_SECONDS
        while True:
            answer = self._ask("POST", "rollouts", body)
            if answer.is_success:
                return str(answer.json()["id"])
            # A version that was just registered is not hosted yet.
            if answer.status_code != httpx.codes.NOT_FOUND or time.monotonic() > deadline:
                raise click.ClickException(f"no rollout of version {version}: {answer.json().get('detail')}")
            time.sleep(_PAUSE_SECONDS)

    def follow(self, rollout_id: str, version: str, alive: Callable[[], None]) -> Ending:
        """Tell each of its moves until it has ended; `alive` is called between looks, and may raise."""
        told, since, last = 0, time.monotonic(), ""
        while True:
            alive()
            seen = self._ask("GET", f"rollouts/{rollout_id}").raise_for_status().json()
            for decision in seen["decisions"][told:]:
                since, told = time.monotonic(), told + 1
                self._tell(version, decision)
            if seen["status"] in _ENDS:
                return _ending(version, seen)
            last = _standing(seen) or last
            if time.monotonic() - since > _GATE_SECONDS:
                raise click.ClickException(f"nothing was decided in {_GATE_SECONDS:.0f} s; {last}")
            time.sleep(_PAUSE_SECONDS)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.request(
            method, f"{self.url}/v1/admin/{path}", json=body, headers=headers, timeout=30, trust_env=False
        )

    def _tell(self, version: str, decision: dict[str, Any]) -> None:
        where = _place(decision["to_status"], decision["to_step"])
        before = _place(decision["from_status"], decision["from_step"])
        self.say(f"version {version}: {before} -> {where}" if before else f"version {version}: {where}")
        for reason in (decision["judgement"] or {}).get("reasons", []):
            if reason["verdict"] == decision["move"]:
                self.console.out(f"          {reason['name']}: {_short(reason)}", highlight=False)


def _ending(version: str, seen: dict[str, Any]) -> Ending:
    decisions = seen["decisions"]
    moments = [datetime.fromisoformat(decision["decided_at"]) for decision in decisions]
    rerouted = (decisions[-1]["jobs"] or {}).get("rerouted", {}).get("count", 0)
    return Ending(version, seen["status"], (moments[-1] - moments[0]).total_seconds(), rerouted)


def _short(reason: dict[str, Any]) -> str:
    return str(reason["text"]).removeprefix(f"{reason['name']}: ")


def _place(status: str | None, step: int | None) -> str:
    if status is None or status == "registered":
        return ""
    return f"canary step {(step or 0) + 1}" if status == "canary" else status.replace("_", " ")


def _standing(seen: dict[str, Any]) -> str:
    """What holds it now, for a message."""
    here = [gate for gate in seen["gates"] if (gate["status"], gate["step"]) == (seen["status"], seen["step"])]
    return "; ".join(_short(reason) for gate in here for reason in gate["judgement"]["reasons"])
