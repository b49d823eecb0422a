"""Pictures of the customers' pages for the documentation: `python -m tests.browser.screenshots [FOLDER]`.

They show the whole platform at work, with the demo model answering real invoices. What a month of use would have left
behind (the days before today in the charts) is seeded, and nothing else.
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import numpy as np
from penstock.db import Database
from penstock.embedded.platform import Platform
from penstock.portal.navigation import SECTIONS
from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright
from sqlalchemy import text

from tests.browser.conftest import FLAGS, ROOT, chromium_path, paused
from tests.platform.webhooks.receiver import Reply, receiving

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
_RARE: Final = 160
"""Of a picture's 256 colours, those that are chosen for the pixels of few."""
EVERYWHERE: Final = ("sign-in", "jobs", "job", "playground", "batch", "usage")
"""Pages of which there are pictures in every look; of the others there is one, light and wide."""
USED: Final = """
INSERT INTO usage_day (tenant_id, day, digest, model_name, model_version, tags, currency, jobs, unmeasured_jobs,
  prompt_tokens, cached_tokens, output_tokens, computed_tokens, recomputed_tokens, device_seconds, recomputed_seconds,
  joules, cost)
SELECT :tenant, current_date - ago, decode(md5(ago::text), 'hex'), 'invoice-extractor', '1', ARRAY['nightly'], 'EUR',
  jobs, jobs, jobs * 310, jobs * 120, jobs * 84, jobs * 274, 0, jobs * 0.21, 0, 0, jobs * 0.00021
FROM (SELECT ago, round((430 - 2.5 * ago + abs(hashint4(ago)) % 130) * CASE WHEN extract(isodow FROM
  current_date - ago) > 5 THEN 0.3 ELSE 1 END)::bigint AS jobs FROM generate_series(1, 29) AS ago) AS days
"""


def main(folder: Path) -> None:
    """Start the platform, give it work, and photograph every page."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="penstock-pictures-", ignore_cleanup_errors=True) as state:
        Path(state).chmod(0o711)
        # The worker stands still while the pictures are taken.
        settings = {"lease_seconds": "600", "webhook_allow_loopback": "true", "worker_slots": "8"}
        models = {"invoice-extractor": MODEL}
        with (
            receiving() as receiver,
            Platform(Path(state) / "state", models=models, settings=settings, durable=False) as platform,
        ):
            receiver.replies.append(Reply(503, body=b"down for maintenance"))
            seed_a_month(platform)
            shown = give_work(platform, f"http://127.0.0.1:{receiver.port}/penstock")
            with paused(platform.services.supervisor.processes["worker"]):
                leave_work(platform)
                take_pictures(platform, pages_of(shown), folder)


def seed_a_month(platform: Platform) -> None:
    """The totals of the days before today, as they are kept once jobs are old."""
    assert platform.bootstrap is not None
    with closing(Database(platform.settings, pool_size=1)) as database, database.transaction() as session:
        session.execute(text(USED), {"tenant": platform.bootstrap.tenant_id})


def give_work(platform: Platform, receiver: str) -> Mapping[str, str]:
    """Set a price, submit every sample, run a batch of them, and name the things to show."""
    with _client(platform) as client:
        _wait_for_model(client)
        price = {"model": "invoice-extractor", "currency": "EUR", "input": "0.4", "cached": "0.1", "output": "1.6"}
        _post(client, "/v1/admin/prices", price)
        put = client.put(f"/v1/admin/tenants/{_tenant(platform)}/budgets", json={"amount": "25", "currency": "EUR"})
        put.raise_for_status()
        endpoint = _post(client, "/v1/webhook-endpoints", {
            "url": receiver, "description": "Bookkeeping",
            "events": ["job.succeeded", "job.failed", "batch.completed"],
        })["id"]  # fmt: skip
        _post(client, "/v1/keys", {"name": "nightly import", "scopes": ["jobs:read", "jobs:write"]})
        answered = [_submit(client, path.read_text(), place) for place, path in enumerate(SAMPLES)]
        rival = _submit(client, SAMPLES[-1].read_text(), 0, params={"temperature": 0.7, "seed": 4})
        batch = _batch(client)
        _post(client, "/v1/bulk", {"action": "replay", "filter": {"tag": "import", "status": "succeeded"}})
        bulk = client.get("/v1/bulk").json()["data"][0]["id"]
        delivery = _retried_delivery(client)
    return {
        "job": answered[-1], "rival": rival, "batch": batch, "bulk": bulk, "endpoint": endpoint, "delivery": delivery,
    }  # fmt: skip


def leave_work(platform: Platform) -> None:
    """While the worker stands still: a job that waits, and one that was cancelled."""
    with _client(platform) as client:
        cancelled = _submit(client, SAMPLES[1].read_text(), 1, wait=0)
        client.post(f"/v1/jobs/{cancelled}/cancel").raise_for_status()
        _submit(client, SAMPLES[4].read_text(), 2, wait=0)


def pages_of(shown: Mapping[str, str]) -> dict[str, str]:
    """Each page's name and address: those of the navigation, and one of each thing that there is."""
    lists = {entry.name: f"@{entry.endpoint}" for section in SECTIONS if not section.role for entry in section.entries}
    return lists | {
        "playground": f"/playground?job={shown['job']}&job={shown['rival']}",
        "job": f"/jobs/{shown['job']}",
        "new-job": f"/jobs/new?from={shown['job']}",
        "bulk": f"/jobs/bulk/{shown['bulk']}",
        "new-bulk": "/jobs/bulk/new?action=replay&tag=import&status=succeeded",
        "batch": f"/batches/{shown['batch']}",
        "new-batch": "/batches/new",
        "webhook-endpoint": f"/webhooks/{shown['endpoint']}",
        "webhook-delivery": f"/webhooks/deliveries/{shown['delivery']}",
    }


def take_pictures(platform: Platform, pages: Mapping[str, str], folder: Path) -> None:
    """Each page in light on a wide screen, and some in dark and on a narrow one as well."""
    with (
        sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)) as browser,
    ):
        for scheme, screen in LOOKS:
            context = browser.new_context(viewport=SCREENS[screen], color_scheme=scheme, reduced_motion="reduce")
            first = (scheme, screen) == LOOKS[0]
            chosen = {name: path for name, path in pages.items() if first or name in EVERYWHERE}
            _walk(context.new_page(), platform, chosen, folder, f"{scheme}-{screen}.png", whole=screen == "wide")
            context.close()


def _walk(page: Page, platform: Platform, pages: Mapping[str, str], folder: Path, ending: str, *, whole: bool) -> None:
    assert platform.bootstrap is not None
    page.goto(f"{platform.url}/sign-in")
    picture(page, folder / f"sign-in-{ending}", whole=False)
    page.get_by_label("Email").fill(platform.bootstrap.email)
    page.get_by_label("Password").fill(platform.bootstrap.password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/jobs")
    ways = {(each.text_content() or "").strip(): each.get_attribute("href") for each in page.locator("#nav a").all()}
    labels = {entry.name: entry.label for section in SECTIONS for entry in section.entries}
    for name, path in pages.items():
        way = ways.get(labels[name]) if path.startswith("@") else path
        if way is None:
            continue  # an entry of the navigation that this installation does not serve
        page.goto(f"{platform.url}{way}")
        if name == "job" and whole:
            page.get_by_text("Read as JSON").click()
        picture(page, folder / f"{name}-{ending}", whole=whole)


def picture(page: Page, target: Path, *, whole: bool) -> None:
    """Write what the page shows as a PNG of 256 colours, which is a third of the size."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(700)
    image = Image.open(BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    _of_few_colours(image).save(target, optimize=True)
    print(f"{target}  {target.stat().st_size // 1024} kB")


def _of_few_colours(image: Image.Image) -> Image.Image:
    """The picture in 256 colours: the most frequent as they are, and such as come near to all others, however rare."""
    pixels = np.asarray(image, dtype=np.int64)
    packed = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    codes, where, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    rare = image.quantize(_RARE, method=Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = np.concatenate([colours[np.argsort(-counts)[: 256 - _RARE]], np.reshape(rare, (-1, 3))])
    nearest = ((colours[:, None] - palette[None]) ** 2).sum(axis=2).argmin(axis=1)
    few = Image.fromarray(nearest[where].reshape(pixels.shape[:2]).astype(np.uint8))
    few.putpalette(palette.astype(np.uint8).tobytes())
    return few


def _client(platform: Platform) -> httpx.Client:
    assert platform.bootstrap is not None
    headers = {"Authorization": f"Bearer {platform.bootstrap.api_key}"}
    return httpx.Client(base_url=platform.url, headers=headers, trust_env=False, timeout=90)


def _tenant(platform: Platform) -> str:
    assert platform.bootstrap is not None
    return platform.bootstrap.tenant_id


def _post(client: httpx.Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    answer = client.post(path, json=body)
    answer.raise_for_status()
    document: dict[str, Any] = answer.json()
    return document


def _submit(
    client: httpx.Client, invoice: str, place: int, *, wait: int = 60, params: Mapping[str, Any] | None = None
) -> str:
    body = {
        "model": "invoice-extractor",
        "input": {"messages": [{"role": "user", "content": invoice}]},
        "params": {"temperature": 0.0, **(params or {})},
        "tags": [("accounts", "nightly", "import")[place % 3]],
        "metadata": {"invoice": f"{place + 1:02d}.txt"},
    }
    answer = client.post("/v1/jobs", json=body, headers={"Prefer": f"wait={wait}"})
    answer.raise_for_status()
    document: dict[str, Any] = answer.json()
    return str(document["id"])


def _batch(client: httpx.Client) -> str:
    """A batch of all samples with one line that cannot be right, which is left out; it is through on return."""
    lines = [
        {
            "custom_id": path.stem, "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "invoice-extractor", "messages": [{"role": "user", "content": path.read_text()}]},
        }
        for path in SAMPLES
    ]  # fmt: skip
    lines.append({"custom_id": "torn", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}})
    content = "".join(json.dumps(line) + "\n" for line in lines)
    files = {"file": ("invoices-november.jsonl", content, "application/jsonl")}
    uploaded = client.post("/v1/files", data={"purpose": "batch"}, files=files)
    uploaded.raise_for_status()
    asked = {"input_file_id": uploaded.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = str(_post(client, "/v1/batches", asked | {"invalid_lines": "skip"})["id"])
    while client.get(f"/v1/batches/{batch}").json()["status"] != "completed":
        time.sleep(0.3)
    return batch


def _retried_delivery(client: httpx.Client) -> str:
    """The delivery whose first attempt was refused, once the second has arrived."""
    while True:
        for each in client.get("/v1/webhook-deliveries?status=delivered&limit=100").json()["data"]:
            if each["attempts"] > 1:
                return str(each["id"])
        time.sleep(0.3)


def _wait_for_model(client: httpx.Client) -> None:
    """Wait until a first job is answered; the worker may still be loading."""
    while json.loads(client.get("/v1/models").text).get("data") in (None, []):
        time.sleep(0.2)
    _submit(client, SAMPLES[2].read_text(), 0)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs/screenshots"))
