"""`penstock up`, as a person runs it: a process of its own, real services, the real API."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.platform.embedded.probes import alive, eventually, users_of

NOWHERE = "http://127.0.0.1:9"  # no MLflow: it takes seconds to load, and one of the starts below has it


@dataclass
class Up:
    """A running `penstock up` and what it has printed."""

    process: subprocess.Popen[str]
    said: dict[str, str]

    @property
    def url(self) -> str:
        return self.said["Portal"]

    def jobs(self, key: str) -> int:
        """The status of a request with the API key."""
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"{self.url}/v1/jobs", headers=headers, trust_env=False).status_code

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]


def command(name: str, state_dir: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "penstock", name, "--state-dir", str(state_dir), *options]


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


@contextmanager
def started(state_dir: Path, *options: str) -> Iterator[Up]:
    """`penstock up`, read until it says that it is up."""
    arguments = command("up", state_dir, "--port", free_port(), *options)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        else:
            pytest.fail("".join(lines))
        pairs = (line.strip().split("  ", 1) for line in lines)
        try:
            yield Up(process, {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2})
        finally:
            process.kill()


def refused(state_dir: Path, *options: str) -> str:
    """What `penstock up` says when it does not start."""
    done = subprocess.run(command("up", state_dir, *options), capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    return " ".join(done.stderr.split())


def test_from_the_first_start_through_kill_9_to_an_orderly_end(state_dir: Path) -> None:
    with started(state_dir) as up:
        key = up.said["API key"]
        assert up.jobs(key) == 200
        assert up.jobs("psk_wrong") == 401
        assert {"postgres", "redis", "mlflow", "web", "control", "worker"} <= set(up.said)

        told = refused(state_dir)
        assert f"(process {up.process.pid}) at {up.url}" in told
        assert up.jobs(key) == 200

        children = up.children()
        up.process.kill()
        up.process.wait()

    with started(state_dir, "--no-worker", "--tracking-uri", NOWHERE) as up:
        assert not any(alive(pid) for pid in children)
        assert "API key" not in up.said
        assert up.jobs(key) == 200
        assert up.said.get("worker") != "ready"  # at most it tells of the earlier run's
        assert up.said["MLflow"] == NOWHERE

        os.kill(up.process.pid, signal.SIGINT)
        assert up.process.wait() == 0
    assert users_of(state_dir) == []


def test_a_crashed_web_process_comes_back_and_another_shell_gets_the_settings(state_dir: Path) -> None:
    with started(state_dir, "--no-worker", "--tracking-uri", NOWHERE) as up:
        settings = subprocess.run(command("env", state_dir), capture_output=True, text=True, check=True).stdout
        listing = f'{settings}\n"{sys.executable}" -m penstock keys list'
        listed = subprocess.run(["bash", "-c", listing], capture_output=True, text=True, check=True).stdout
        assert "first key" in listed

        direct = psutil.Process(up.process.pid).children()
        [web] = [child.pid for child in direct if child.cmdline()[-3:] == ["-m", "penstock", "web"]]
        family = [web, *(child.pid for child in psutil.Process(web).children(recursive=True))]
        os.kill(web, signal.SIGKILL)
        assert eventually(lambda: not any(alive(pid) for pid in family))

        def is_back() -> bool:
            try:
                return up.jobs(up.said["API key"]) == 200
            except httpx.TransportError:
                return False

        assert eventually(is_back)
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait() == 0
    assert users_of(state_dir) == []
    refusal = subprocess.run(command("env", state_dir), capture_output=True, text=True)
    assert refusal.returncode == 1
    assert "no platform runs on this folder" in refusal.stderr


def test_stopping_while_it_still_starts_leaves_nothing(state_dir: Path) -> None:
    arguments = command("up", state_dir, "--port", free_port(), "--no-worker")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "mlflow" in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
        assert process.wait() == 0, rest
        assert rest.endswith("Stopped.\n")
    assert users_of(state_dir) == []


def test_a_taken_port_is_named_with_its_setting_before_anything_starts(state_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refused(state_dir, "--port", port)
    assert f"Port {port} on 127.0.0.1 is in use" in said
    assert "--port or PENSTOCK_WEB_PORT" in said
    assert not (state_dir / "postgres").exists()


def test_a_wrong_setting_stops_the_start_and_is_named(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_LEASE_SECONDS", "soon")
    said = refused(state_dir, "--port", free_port(), "--tracking-uri", NOWHERE)
    assert "PENSTOCK_LEASE_SECONDS" in said
    assert users_of(state_dir) == []


@pytest.mark.parametrize("value", ["no-equals-sign", "name=", "name=/no/such/folder"])
def test_a_model_option_that_names_no_folder_is_a_usage_error(state_dir: Path, value: str) -> None:
    done = subprocess.run(command("up", state_dir, "--model", value), capture_output=True, text=True)
    assert done.returncode == 2
    assert "'--model'" in done.stderr
