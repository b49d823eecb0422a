"""PostgreSQL, Redis and MLflow from pip packages, and the platform's own processes, under one supervisor."""

from penstock.embedded.services import EmbeddedServices, External, Ports

__all__ = ["EmbeddedServices", "External", "Ports"]
