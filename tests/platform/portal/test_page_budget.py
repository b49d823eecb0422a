"""What a page makes a browser fetch: one stylesheet before it paints, scripts that wait, and not many bytes."""

from collections.abc import Callable

from penstock.auth.models import User
from penstock.auth.services import Role
from sqlalchemy import update

from bench.page_parts.heads import Fetched, FirstLoad, first_load, read
from bench.page_parts.installation import furnish
from bench.pages import fetched, fill, operators_paths, paths, signed_in
from tests.platform.portal.conftest import Person

DOCUMENT = "<!doctype html>"
FORMS = ["/jobs/new", "/batches/new"]
MOST_BYTES, MOST_WITH_CHARTS = 150_000, 200_000
"""Of a first visit as it travels, the page itself among it, which no web process packs."""


def test_every_page_paints_after_one_stylesheet_and_a_first_visit_is_small(make_person: Callable[..., Person]) -> None:
    database, tenant_id = (person := make_person()).database, person.tenant_id
    with database.transaction() as session:
        session.execute(update(User).values(role=Role.OPERATOR))
    asked = [*FORMS, *paths(fill(database, 600, tenant_id)), *operators_paths(furnish(database, minutes=90, hours=3))]
    visitor = signed_in(person.client.application, database)
    assets: dict[str, Fetched] = {}

    def fetch(address: str) -> Fetched:
        return assets.get(address) or assets.setdefault(address, fetched(visitor, address))

    seen = 0
    for path in asked:
        answer = visitor.get(path, headers={"Accept": "text/html"})
        assert answer.status_code == 200, path
        if not answer.text.startswith(DOCUMENT):
            continue
        seen += 1
        page = read(answer.text)
        (stylesheet,) = page.stylesheets
        assert page.blocking == [stylesheet], path
        assert [script.rpartition("/")[2] for script in page.scripts] == ["htmx.min.js", "portal.js"], path
        assert all(address.startswith("/assets/") for address in (*page.fetched, *page.scripts)), path
        load = first_load(path, Fetched(len(answer.data), answer.text), fetch)
        assert load.bytes < (MOST_WITH_CHARTS if page.charts else MOST_BYTES), f"{path}: {load}"
    assert seen > 30


def test_what_keeps_a_page_from_painting_is_found() -> None:
    page = read(
        '<head><link rel="stylesheet" href="a.css"><style>p {}</style><script src="slow.js"></script>'
        '<script src="late.js" defer></script><script type="module" src="m.js"></script><script>go()</script></head>'
    )
    assert page.blocking == ["a.css", "<style>", "slow.js", "<script>"]
    assert page.scripts == ["slow.js", "late.js", "m.js"]


def test_a_first_visit_fetches_what_scripts_import_once_and_charts_where_there_are_some() -> None:
    files = {
        "/x/portal.css": "1", "/x/js/a.js": 'import { b } from "./b.js";\nserve();',
        "/x/js/b.js": 'import { a } from "./a.js";\nexport const later = () => import("../big.js");',
        "/x/big.js": "12345", "/points": "123",
    }  # fmt: skip

    def fetch(address: str) -> Fetched:
        return Fetched(len(files[address]), files[address])

    head = '<link rel="stylesheet" href="/x/portal.css"><script type="module" src="/x/js/a.js"></script>'
    scripts = len(files["/x/js/a.js"]) + len(files["/x/js/b.js"])
    assert first_load("/", Fetched(10, head), fetch) == FirstLoad(4, 10 + 1 + scripts)
    charted = head + '<figure data-chart="/points"></figure><figure data-chart="/points"></figure>'
    assert first_load("/", Fetched(10, charted), fetch) == FirstLoad(6, 10 + 1 + scripts + 5 + 3)
