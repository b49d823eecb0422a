"""Metrics kept in PostgreSQL: points by minute and by hour, written from what is there, and read for charts."""
