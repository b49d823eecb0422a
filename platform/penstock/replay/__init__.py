"""Stored jobs, run again on another version, and what became different."""
