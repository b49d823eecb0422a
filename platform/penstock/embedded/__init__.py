"""The platform's services without Docker and without root: PostgreSQL, Redis and MLflow from pip, under one supervisor."""

from penstock.embedded.services import EmbeddedServices

__all__ = ["EmbeddedServices"]
