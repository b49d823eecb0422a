"""Pictures of the portal for the documentation: `python -m tests.browser.screenshots [FOLDER]`.

They show the whole platform at work, with the demo model answering real invoices; nothing in them is drawn.
"""

import json
import sys
import tempfile
import time
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal

import httpx
from penstock.embedded.platform import Platform
from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

from tests.browser.conftest import FLAGS, ROOT, chromium_path, paused

SAMPLES = sorted((ROOT / "examples/invoices/samples").glob("*.txt"))
MODEL = ROOT / "examples/invoices/model"
LOOKS: Final[tuple[tuple[Literal["light", "dark"], str], ...]] = (
    ("light", "wide"),
    ("dark", "wide"),
    ("dark", "narrow"),
)
SCREENS: Final[dict[str, ViewportSize]] = {
    "wide": {"width": 1440, "height": 900},
    "narrow": {"width": 390, "height": 844},
}


def main(folder: Path) -> None:
    """Start the platform, give it work, and photograph it in both themes on both screens."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="penstock-pictures-", ignore_cleanup_errors=True) as state:
        Path(state).chmod(0o711)
        patient = {"lease_seconds": "600"}  # the worker stands still while the pictures are taken
        with Platform(
            Path(state) / "state", models={"invoice-extractor": MODEL}, settings=patient, durable=False
        ) as platform:
            job = give_work(platform)
            with paused(platform.services.supervisor.processes["worker"]):
                leave_work(platform)
                take_pictures(platform, job, folder)


def give_work(platform: Platform) -> str:
    """Submit every sample, wait for the answers, and name the job to show."""
    with _client(platform) as client:
        _wait_for_model(client)
        return [_submit(client, path.read_text(), place) for place, path in enumerate(SAMPLES)][-1]


def leave_work(platform: Platform) -> None:
    """While the worker stands still: a job that waits, and one that was cancelled."""
    with _client(platform) as client:
        cancelled = _submit(client, SAMPLES[1].read_text(), 1, wait=0)
        client.post(f"/v1/jobs/{cancelled}/cancel").raise_for_status()
        _submit(client, SAMPLES[4].read_text(), 2, wait=0)


def take_pictures(platform: Platform, job: str, folder: Path) -> None:
    """Each page in light and in dark on a wide screen, and in dark on a narrow one."""
    assert platform.bootstrap is not None
    with (
        sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)) as browser,
    ):
        for scheme, screen in LOOKS:
            context = browser.new_context(viewport=SCREENS[screen], color_scheme=scheme, reduced_motion="reduce")
            _walk(context.new_page(), platform, job, folder, f"{scheme}-{screen}.png", whole=screen == "wide")
            context.close()


def _walk(page: Page, platform: Platform, job: str, folder: Path, name: str, *, whole: bool) -> None:
    assert platform.bootstrap is not None
    page.goto(f"{platform.url}/sign-in")
    picture(page, folder / f"sign-in-{name}", whole=False)
    page.get_by_label("Email").fill(platform.bootstrap.email)
    page.get_by_label("Password").fill(platform.bootstrap.password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/jobs")
    picture(page, folder / f"jobs-{name}", whole=whole)
    page.goto(f"{platform.url}/jobs/new?from={job}")
    picture(page, folder / f"new-job-{name}", whole=whole)
    page.goto(f"{platform.url}/jobs/{job}")
    if whole:
        page.get_by_text("Read as JSON").click()
    picture(page, folder / f"job-{name}", whole=whole)


def picture(page: Page, target: Path, *, whole: bool) -> None:
    """Write what the page shows as a PNG of 256 colours, which is a third of the size."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(400)
    image = Image.open(BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}  {target.stat().st_size // 1024} kB")


def _client(platform: Platform) -> httpx.Client:
    assert platform.bootstrap is not None
    headers = {"Authorization": f"Bearer {platform.bootstrap.api_key}"}
    return httpx.Client(base_url=platform.url, headers=headers, trust_env=False, timeout=90)


def _submit(client: httpx.Client, text: str, place: int, *, wait: int = 60) -> str:
    body = {
        "model": "invoice-extractor",
        "input": {"messages": [{"role": "user", "content": text}]},
        "params": {"temperature": 0.0},
        "tags": [("accounts", "nightly", "import")[place % 3]],
        "metadata": {"invoice": f"{place + 1:02d}.txt"},
    }
    answer = client.post("/v1/jobs", json=body, headers={"Prefer": f"wait={wait}"})
    answer.raise_for_status()
    document: dict[str, Any] = answer.json()
    return str(document["id"])


def _wait_for_model(client: httpx.Client) -> None:
    """Wait until a first job is answered; the worker may still be loading."""
    while json.loads(client.get("/v1/models").text).get("data") in (None, []):
        time.sleep(0.2)
    _submit(client, SAMPLES[2].read_text(), 0)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs/screenshots"))
