"""The route that MLflow's webhooks call."""

import time

from apiflask import APIBlueprint
from flask import Response, request
from redis.exceptions import RedisError

from penstock.errors import NotFound, ServiceUnavailable
from penstock.registry.hints import PATH, Hints, verify
from penstock.services import current_services


def take_hint() -> Response:
    """Pass MLflow's hint on. Without a secret to check it by there is no such route."""
    services = current_services()
    secret = services.settings.registry_webhook_secret
    if secret is None:
        raise NotFound("MLflow's webhooks are not taken here; set PENSTOCK_REGISTRY_WEBHOOK_SECRET")
    verify(secret.get_secret_value(), dict(request.headers), request.get_data(), now=time.time())
    try:
        Hints(services.redis).give()
    except RedisError as error:
        raise ServiceUnavailable("Redis does not answer; the registry is read again in a while all the same") from error
    return Response(status=204)


def blueprint() -> APIBlueprint:
    """The one route. It is no part of the API's document."""
    routes = APIBlueprint("registry_hints", __name__, enable_openapi=False)
    routes.add_url_rule(PATH, view_func=take_hint, methods=["POST"])
    return routes
