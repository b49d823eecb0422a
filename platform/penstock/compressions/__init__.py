"""Compression and evaluation of models as jobs: what is asked, on which model's files, and what came of it."""
