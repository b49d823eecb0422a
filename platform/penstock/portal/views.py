"""The portal on a Flask application: its frame, its safety, and its blueprints."""

from datetime import timedelta
from typing import Any, Final

from flask import Flask, Response, abort, current_app, render_template, request
from flask_wtf.csrf import CSRFError

from penstock.dashboard.pages import OPERATORS_PAGES
from penstock.errors import SettingsError
from penstock.portal import wording
from penstock.portal.assets import Asset, Assets, web_folder
from penstock.portal.guard import csrf, current_user
from penstock.portal.navigation import sections_for
from penstock.portal.pages import PAGES
from penstock.portal.throttle import SignInThrottle
from penstock.settings import Settings, variable_name

_SESSION_DAYS: Final = 14
_YEAR_SECONDS: Final = 31_536_000
_THEMES: Final = ("light", "dark")
# Nothing inline, nothing from elsewhere: text of a model that is taken for markup by mistake still cannot act.
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def register(app: Flask) -> None:
    """Add the portal to the application. Raises `SettingsError` when no secret key signs its cookies."""
    settings: Settings = app.extensions["penstock"].settings
    folder = web_folder()
    assets = Assets(folder / "static")
    _configure_cookies(app, settings)
    csrf.init_app(app)
    app.extensions["penstock.sign_in_throttle"] = SignInThrottle(app.extensions["penstock"].redis)
    app.extensions["penstock.error_page"] = error_page
    app.jinja_env.globals.update(asset=assets.address)
    app.add_url_rule("/assets/<digest>/<path:name>", "portal_asset", lambda digest, name: _serve(assets, digest, name))
    app.register_error_handler(CSRFError, _on_csrf_error)
    app.after_request(_protect_page)
    for blueprint in (*PAGES, *OPERATORS_PAGES):
        blueprint.template_folder = str(folder / "templates")
        app.register_blueprint(blueprint)
    if settings.oidc_issuer is not None:
        _offer_provider(app, settings)
    app.context_processor(_page_context)


def _offer_provider(app: Flask, settings: Settings) -> None:
    from penstock.auth.oidc import OidcProvider  # takes a second to import, which only who uses it should pay
    from penstock.portal import oidc_views

    app.extensions[oidc_views.EXTENSION] = OidcProvider(app, settings)
    app.register_blueprint(oidc_views.blueprint)


def error_page(problem: dict[str, Any]) -> str:
    """A problem document as a page for people."""
    return render_template("portal/error.html", problem=problem)


def _configure_cookies(app: Flask, settings: Settings) -> None:
    secret = settings.secret_key.get_secret_value()
    if not secret:
        raise SettingsError(f"{variable_name('secret_key')}: must be set; it signs the portal's session cookies")
    app.config.update(
        SECRET_KEY=secret,
        SESSION_COOKIE_NAME="penstock_session",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=settings.secure_cookies,
        PERMANENT_SESSION_LIFETIME=timedelta(days=_SESSION_DAYS),
        WTF_CSRF_CHECK_DEFAULT=False,  # the API has keys, not cookies; the portal's blueprints check for themselves
        WTF_CSRF_TIME_LIMIT=None,  # a page that stayed open works as long as its session
    )


def _page_context() -> dict[str, Any]:
    theme, user = request.cookies.get("theme", ""), current_user()
    return {
        "user": user,
        "sections": sections_for(user, current_app.view_functions),
        "theme": theme if theme in _THEMES else None,
        "wording": wording,
    }


def _protect_page(response: Response) -> Response:
    ours = (request.blueprint or "").startswith("portal_")
    if ours or (response.status_code >= 400 and response.mimetype == "text/html"):
        for name, value in _PAGE_HEADERS.items():
            response.headers.setdefault(name, value)
    return response


def _serve(assets: Assets, digest: str, name: str) -> Response:
    asset = assets.get(name)
    if asset is None:
        abort(404, description=f"there is no file {name!r}")
    response = _compressed(asset) if request.accept_encodings.quality("gzip") > 0 else Response(asset.body)
    response.headers["Content-Type"] = asset.media_type
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.vary.add("Accept-Encoding")
    # An address of an earlier release gets today's file, but must not keep it.
    current = digest == assets.digest
    response.headers["Cache-Control"] = f"public, max-age={_YEAR_SECONDS}, immutable" if current else "no-cache"
    return response


def _compressed(asset: Asset) -> Response:
    if asset.gzipped is None:
        return Response(asset.body)
    return Response(asset.gzipped, headers={"Content-Encoding": "gzip"})


def _on_csrf_error(_error: CSRFError) -> tuple[str, int]:
    problem = {
        "status": 400,
        "code": "form_expired",
        "title": "This form has expired",
        "detail": "You signed in or out since the page was opened. Go back, reload the page, and send it once more.",
    }
    return error_page(problem), 400
