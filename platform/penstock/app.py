"""The web process's application: `create_app` puts it together."""

import time
from typing import Final

import structlog
from apiflask import APIFlask
from flask import Flask, Request, Response, g, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from opentelemetry.trace import SpanKind
from redis import Redis
from werkzeug.middleware.proxy_fix import ProxyFix

from penstock import __version__, health, openapi
from penstock.auth.key_ring import KeyRing
from penstock.auth.operator_views import routes as operator_routes
from penstock.auth.views import routes as account_routes
from penstock.broker import make_redis
from penstock.bulk.views import routes as bulk_routes
from penstock.compressions.views import routes as calibration_routes
from penstock.db import Database
from penstock.dead_letters.views import routes as dead_letter_routes
from penstock.errors import NotFound
from penstock.events.live import FeedBroadcaster
from penstock.events.views import routes as event_routes
from penstock.feedback.views import routes as feedback_routes
from penstock.files.storage import FileStorage
from penstock.ids import new_id
from penstock.jobs.journal import Journal
from penstock.jobs.live import LiveBroadcaster
from penstock.jobs.services import PromptCounter
from penstock.jobs.views import routes as job_routes
from penstock.logs import get_logger
from penstock.metrics import Metrics
from penstock.openai_api.batch_views import routes as batch_routes
from penstock.openai_api.file_views import routes as file_routes
from penstock.openai_api.problems import in_openai_form
from penstock.openai_api.response_views import routes as response_routes
from penstock.openai_api.views import routes as openai_routes
from penstock.places import Places
from penstock.portal import views as portal
from penstock.problems import install_problem_handlers
from penstock.quotas.counters import Counters
from penstock.quotas.fields import add_fields
from penstock.quotas.gate import QuotaGate
from penstock.quotas.views import routes as quota_routes
from penstock.registry import hint_views
from penstock.replay.views import routes as replay_routes
from penstock.retention.views import routes as retention_routes
from penstock.rollouts.views import routes as rollout_routes
from penstock.rollups.views import routes as metric_routes
from penstock.routing.recent import RecentRoutes
from penstock.routing.views import routes as model_routes
from penstock.services import Services, current_services
from penstock.settings import Settings
from penstock.tracing import Tracing, log_fields, make_tracing, parent_of, traceparent_of, valid_traceparent
from penstock.usage.views import operator_routes as price_routes
from penstock.usage.views import routes as usage_routes
from penstock.webhooks.views import routes as webhook_routes
from penstock.workers.views import routes as worker_routes

_COUNT_SECONDS: Final = 0.5  # how long a request waits for Redis to count it
_WAITING_SHARE: Final = 0.75  # of the threads; the rest answer short requests
_APIS: Final = (
    job_routes,
    bulk_routes,
    feedback_routes,
    openai_routes,
    file_routes,
    batch_routes,
    response_routes,
    retention_routes,
    model_routes,
    account_routes,
    quota_routes,
    event_routes,
    webhook_routes,
    usage_routes,
    operator_routes,
    dead_letter_routes,
    worker_routes,
    metric_routes,
    price_routes,
    calibration_routes,
    rollout_routes,
    replay_routes,
)
log = get_logger(__name__)


class _Sessions(SecureCookieSessionInterface):
    """Makes no signer for a request that brings no session, as none of the API's does."""

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        known = self.get_cookie_name(app) in request.cookies
        return super().open_session(app, request) if known else self.session_class()


def create_app(
    settings: Settings,
    *,
    prompts: PromptCounter | None = None,
    database: Database | None = None,
    redis: Redis | None = None,
    tracing: Tracing | None = None,
) -> Flask:
    """The application with all routes. It connects when a request needs it to, so it starts while services are down.

    Without `prompts` the deployments' own tokenizers count.
    """
    app = APIFlask(
        "penstock", title="Penstock", version=__version__, docs_path=None, json_errors=False, static_folder=None
    )
    app.config["SECRET_KEY"] = settings.secret_key.get_secret_value()
    # One more than we take: Werkzeug cuts a body of unknown length off at the limit and says nothing (see `read_body`).
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes + 1
    app.session_interface = _Sessions()
    app.json.sort_keys = False
    app.url_map.strict_slashes = False
    if settings.proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=settings.proxies, x_proto=settings.proxies)
    app.extensions["penstock"] = make_services(settings, prompts, database, redis, tracing)
    install_problem_handlers(app)
    openapi.install(app)
    app.before_request(_begin)
    app.teardown_request(_forget_trace)
    app.after_request(_finish)
    app.after_request(add_fields)
    app.after_request(in_openai_form)
    for blueprint in (*_APIS, hint_views.blueprint(), health.blueprint(), openapi.blueprint()):
        app.register_blueprint(blueprint)
    portal.register(app)
    openapi.leave_out_pages(app)
    result: Flask = app
    return result


def make_services(
    settings: Settings,
    prompts: PromptCounter | None,
    database: Database | None,
    redis: Redis | None,
    tracing: Tracing | None = None,
) -> Services:
    """The doors of one web process; those that are not given are opened by the settings."""
    database = database or Database(settings)
    redis = redis or make_redis(settings, retries=1)
    waiting_places = Places(max(int(settings.web_threads * _WAITING_SHARE), 1))
    return Services(
        settings=settings,
        database=database,
        redis=redis,
        journal=Journal(redis, publisher=new_id("web")),
        live=LiveBroadcaster(redis, database),
        feed=FeedBroadcaster(database),
        keys=KeyRing(database, settings.environment),
        prompts=prompts or _tokenizers(),
        routes=RecentRoutes(database),
        metrics=Metrics(database, lambda: waiting_places.taken),
        waiting_places=waiting_places,
        tracing=tracing or make_tracing(settings, "web"),
        quotas=QuotaGate(Counters(make_redis(settings, retries=0, timeout=_COUNT_SECONDS)), settings),
        storage=FileStorage.of(settings),
        rehearsals=Places(1),
    )


def _tokenizers() -> PromptCounter:
    from penstock.registry.tokenizer_cache import TokenizerCache

    cache: PromptCounter = TokenizerCache()
    return cache


def _begin() -> None:
    g.began = time.perf_counter()
    _begin_trace()
    if "\0" in request.path:
        raise NotFound("no path contains the character NUL")


def _finish(response: Response) -> Response:
    seconds = time.perf_counter() - g.began
    route = request.url_rule.rule if request.url_rule else "unknown"
    metrics = current_services().metrics
    metrics.requests.labels(request.method, route, str(response.status_code)).inc()
    metrics.latency.labels(request.method, route).observe(seconds)
    g.span.update_name(f"{request.method} {route}")
    g.span.set_attributes({"http.route": route, "http.response.status_code": response.status_code})
    g.span.end()
    log.debug(
        "request.answered", method=request.method, route=route, status=response.status_code, seconds=round(seconds, 4)
    )
    return response


def _begin_trace() -> None:
    """A span for the request, the child of its sender's; log lines name its trace."""
    sent = valid_traceparent(request.headers.get("traceparent"))
    g.span = current_services().tracing.tracer.start_span(
        request.method, parent_of(sent), kind=SpanKind.SERVER, attributes={"http.request.method": request.method}
    )
    g.traceparent = traceparent_of(g.span) or sent
    structlog.contextvars.bind_contextvars(**log_fields(g.traceparent))


def _forget_trace(_error: BaseException | None) -> None:
    structlog.contextvars.unbind_contextvars("trace_id", "span_id")
