"""Whose turn it is: virtual token counters of tenants, the order of claims, and what a waiting job may be told of it."""
