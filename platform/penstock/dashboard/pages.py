"""The blueprints of the operators' pages."""

from typing import Final

from penstock.dashboard import (
    audit_views,
    health_views,
    letter_views,
    model_views,
    overview_views,
    policy_views,
    rollout_views,
    tenant_views,
    version_views,
    worker_views,
)

OPERATORS_PAGES: Final = (
    overview_views.blueprint,
    worker_views.blueprint,
    model_views.blueprint,
    version_views.blueprint,
    rollout_views.blueprint,
    policy_views.blueprint,
    letter_views.blueprint,
    tenant_views.blueprint,
    audit_views.blueprint,
    health_views.blueprint,
)
