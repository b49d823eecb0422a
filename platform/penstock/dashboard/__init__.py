"""The operators' pages: how the installation goes, and what can be done about it."""
