"""Batches: a file of requests, a line each, whose jobs are made as there is room for them and told as they finish."""
