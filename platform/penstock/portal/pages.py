"""The blueprints of the pages that every signed-in person has."""

from typing import Final

from penstock.portal import (
    account_views,
    batch_views,
    bulk_views,
    file_views,
    job_views,
    key_views,
    playground_views,
    usage_views,
    webhook_views,
)

PAGES: Final = (
    account_views.blueprint,
    playground_views.blueprint,
    bulk_views.blueprint,
    job_views.blueprint,
    batch_views.blueprint,
    file_views.blueprint,
    key_views.blueprint,
    webhook_views.blueprint,
    usage_views.blueprint,
)
