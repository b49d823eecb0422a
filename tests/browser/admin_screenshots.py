"""Pictures of the operators' pages for the documentation, of an installation at work.

python -m tests.browser.admin_screenshots [FOLDER]
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from penstock.app import create_app
from penstock.auth.audit import Actor, ActorKind
from penstock.auth.models import User
from penstock.auth.services import Role, create_tenant
from penstock.broker import make_redis
from penstock.db import Database
from penstock.embedded import EmbeddedServices
from penstock.ids import new_id
from penstock.settings import Settings
from playwright.sync_api import Browser, sync_playwright
from pydantic import SecretStr

from tests.browser.conftest import EMAIL, FLAGS, ROOT, SCREENS, Tab, chromium_path, serving
from tests.factories import WordCounter
from tests.platform.portal.conftest import password_hash
from tests.platform.portal.scene import Scene, set_scene

LOOKS = (("wide", "light"), ("narrow", "dark"))


def main(folder: Path) -> None:
    """Write `admin-<page>-<scheme>-<screen>.png` for every page and look."""
    with installation() as (base, scene), sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        for screen, scheme in LOOKS:
            take(browser, base, scene, folder, screen, scheme)
        browser.close()


@contextmanager
def installation() -> Iterator[tuple[str, Scene]]:
    """A web process on a database with the scene in it."""
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
            scene = people_the(database)
            app = create_app(settings, prompts=WordCounter(), database=database, redis=redis)
            with serving(app, []) as port:
                yield f"http://127.0.0.1:{port}", scene
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


def people_the(database: Database) -> Scene:
    """An operator, and everything that there is to see."""
    with database.transaction() as session:
        tenant = create_tenant(session, "Northwind Accounting")
        user = User(
            id=new_id("usr"), tenant_id=tenant.id, email=EMAIL, password_hash=password_hash(), role=Role.OPERATOR
        )
        session.add(user)
        session.flush()
        return set_scene(session, tenant, Actor(ActorKind.USER, user.id, user.email, None, scopes=()))


def take(browser: Browser, base: str, scene: Scene, folder: Path, screen: str, scheme: str) -> None:
    """Every page in one look."""
    width, height = SCREENS[screen]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light"
    )
    tab = Tab(context.new_page(), base)
    tab.open("/admin/")
    tab.sign_in_to("**/admin/")
    pages = {
        "overview": "/admin/",
        "workers": "/admin/workers",
        "model": f"/admin/models/{scene.model}",
        "rollout": f"/admin/rollouts/{scene.rollout_id}",
        "flips": f"/admin/rollouts/{scene.rollout_id}/flips",
        "dead-letters": "/admin/dead-letters",
        "tenants": "/admin/tenants",
        "audit": "/admin/audit",
        "health": "/admin/health",
    }
    for name, path in pages.items():
        tab.open(path)
        for chart in tab.page.locator("figure.chart").all():
            chart.locator("canvas").wait_for()
        tab.page.screenshot(path=folder / f"admin-{name}-{scheme}-{screen}.png", full_page=True)
        tab.check()
    context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs/screenshots"))
