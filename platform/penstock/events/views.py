"""The feed's one route, in two forms: pages and a stream."""

from typing import Final

from apiflask import APIBlueprint
from flask import Response, jsonify, request

from penstock.auth.services import Principal, Scope
from penstock.endpoints import Contract, endpoint
from penstock.events.documents import FeedHeaders, FeedPage, FeedQuery
from penstock.events.services import cursor_of, items_since, place_committed
from penstock.events.stream import stream_response
from penstock.services import current_services

routes: Final = APIBlueprint("api_events", __name__, url_prefix="/v1/events", tag="Events")
_JSON: Final = "application/json"
_STREAM: Final = "text/event-stream"


@endpoint(routes, "GET", "", Contract(scope=Scope.JOBS_READ, headers=FeedHeaders, query=FeedQuery, answer=FeedPage))
def list_events(principal: Principal, headers: FeedHeaders, query: FeedQuery) -> Response:
    """List all that happened in the tenant, oldest first.

    Whoever missed webhooks or streams reads on after the last event that it had: no event ever takes a place before
    one that was shown. With `Accept: text/event-stream` it is a stream of Server-Sent Events, whose `id` is the
    event's and whose `data` is a FeedEventDocument; it goes on as events come, and after a break resumes exactly after
    `Last-Event-ID`. A comment is sent when nothing else was for 15 seconds.
    """
    services = current_services()
    streamed = request.accept_mimetypes.best_match([_JSON, _STREAM]) == _STREAM
    after = headers.last_event_id if streamed and headers.last_event_id else query.after
    with services.database.transaction() as session:
        place_committed(session)
    with services.database.transaction() as session:
        position = cursor_of(session, principal.tenant_id, after)
        found = [] if streamed else items_since(session, {principal.tenant_id: position}, query.limit + 1)
    if streamed:
        return stream_response(services, principal, position)
    page = found[: query.limit]
    last = page[-1].position if page else position
    documents = [item.document for item in page]
    return jsonify({"object": "list", "data": documents, "has_more": len(found) > len(page), "next": str(last)})
