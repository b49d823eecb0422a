"""Pictures of the operators' pages for the documentation, of an installation at work.

python -m tests.browser.admin_screenshots [FOLDER [PAGE...]]
"""

import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from alembic import command
from alembic.config import Config
from penstock.app import create_app
from penstock.auth.audit import Actor, ActorKind
from penstock.auth.models import User
from penstock.auth.services import Role, create_tenant
from penstock.broker import make_redis
from penstock.clock import utc_now
from penstock.db import Database
from penstock.dead_letters.models import DeadLetter
from penstock.embedded import EmbeddedServices
from penstock.ids import new_id
from penstock.rollouts.models import Rollout
from penstock.rollouts.states import State
from penstock.settings import Settings
from playwright.sync_api import Browser, sync_playwright
from pydantic import SecretStr
from sqlalchemy import select

from tests.browser.admin_rollouts import rollouts_of
from tests.browser.conftest import EMAIL, FLAGS, ROOT, SCREENS, Tab, chromium_path, serving
from tests.browser.screenshots import picture
from tests.factories import WordCounter
from tests.platform.portal.conftest import password_hash
from tests.platform.portal.scene import Scene, set_scene
from tests.platform.portal.traffic import write_traffic

Scheme = Literal["light", "dark"]
A_DAY: Final = 25 * 60
"""Minutes of traffic in the overview's charts."""
EVERYWHERE: Final = ("overview", "workers", "rollout")
"""Pages of which there are pictures on a narrow screen as well, in the dark; of the others there is one."""


def main(folder: Path, names: Collection[str]) -> None:
    """Write `admin-<page>-<scheme>-<screen>.png` for every page, or for those of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    with installation() as (base, every), sync_playwright() as running:
        pages = {name: path for name, path in every.items() if not names or name in names}
        browser = running.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        take(browser, base, pages, folder, "wide", "light")
        take(browser, base, {name: pages[name] for name in EVERYWHERE if name in pages}, folder, "narrow", "dark")
        browser.close()


@contextmanager
def installation() -> Iterator[tuple[str, Mapping[str, str]]]:
    """A web process on a database with the scene in it, and what its pages are called and where they are."""
    with tempfile.TemporaryDirectory(prefix="penstock-pictures-", ignore_cleanup_errors=True) as state:
        Path(state).chmod(0o711)  # under root the database runs as another user, who must get through
        with EmbeddedServices(Path(state) / "state", mlflow=False, durable=False) as running:
            settings = Settings(
                database_url=SecretStr(running.database_url),
                redis_url=SecretStr(running.redis_url),
                secret_key=SecretStr("only-for-pictures"),
                files_url=f"{state}/files",
            )
            database, redis = migrated(settings), make_redis(settings)
            pages = people_the(database)
            app = create_app(settings, prompts=WordCounter(), database=database, redis=redis)
            with serving(app, []) as port:
                yield f"http://127.0.0.1:{port}", pages
            app.extensions["penstock"].stop_streams()
            redis.close()
            database.close()


def migrated(settings: Settings) -> Database:
    """The new database with all tables."""
    database = Database(settings)
    with database.engine.connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(ROOT / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    return database


def people_the(database: Database) -> dict[str, str]:
    """An operator, and everything that there is to see, page by page."""
    with database.transaction() as session:
        tenant = create_tenant(session, "Northwind Accounting")
        user = User(
            id=new_id("usr"), tenant_id=tenant.id, email=EMAIL, password_hash=password_hash(), role=Role.OPERATOR
        )
        session.add(user)
        session.flush()
        scene = set_scene(session, tenant, Actor(ActorKind.USER, user.id, user.email, None, scopes=()), rollouts_of)
        write_traffic(session, utc_now(), minutes=A_DAY)
        letter = session.scalars(select(DeadLetter.id).where(DeadLetter.job_id == scene.letter_job_id)).one()
        ended = session.scalars(select(Rollout.id).where(Rollout.state == State.ROLLED_BACK)).one()
        return pages_of(scene, tenant.id, letter, ended)


def pages_of(scene: Scene, tenant_id: str, letter_id: str, ended_id: str) -> dict[str, str]:
    """Each page's name and address."""
    rollout = f"/admin/rollouts/{scene.rollout_id}"
    return {
        "overview": "/admin/?range=24h",
        "workers": "/admin/workers",
        "models": "/admin/models",
        "model": f"/admin/models/{scene.model}",
        "version": f"/admin/models/{scene.model}/versions/2",
        "rollouts": "/admin/rollouts",
        "new-rollout": f"/admin/rollouts/new?candidate={scene.model}:2",
        "rollout": rollout,
        "rollout-shadow": f"{rollout}/gates/shadow/0",
        "rollout-rolled-back": f"/admin/rollouts/{ended_id}",
        "flips": f"{rollout}/flips",
        "policies": "/admin/policies",
        "policy": f"/admin/policies/{scene.model}",
        "dead-letters": "/admin/dead-letters",
        "dead-letter": f"/admin/dead-letters/{letter_id}",
        "tenants": "/admin/tenants",
        "tenant": f"/admin/tenants/{tenant_id}",
        "audit": "/admin/audit",
        "health": "/admin/health",
    }


def take(browser: Browser, base: str, pages: Mapping[str, str], folder: Path, screen: str, scheme: Scheme) -> None:
    """Pages in one look."""
    width, height = SCREENS[screen]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    tab = Tab(context.new_page(), base)
    tab.open("/admin/")
    tab.sign_in_to("**/admin/")
    for name, path in pages.items():
        tab.open(path)
        for chart in tab.page.locator("figure.chart").all():
            chart.locator("canvas").wait_for()
        if tab.page.locator("#policy-told, .cost").count():  # it is rehearsed while one looks
            tab.page.locator(".cost:not([hx-trigger])").wait_for(timeout=120_000)
        picture(tab.page, folder / f"admin-{name}-{scheme}-{screen}.png", whole=True)
        tab.check()
    context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs/screenshots"), sys.argv[2:])
