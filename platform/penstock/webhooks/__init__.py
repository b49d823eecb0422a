"""Webhooks: signed deliveries whose retries are rows."""
