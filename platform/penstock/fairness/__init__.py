"""Whose turn it is: virtual token counters of tenants, the order of claims, and a waiting job's place in it."""
