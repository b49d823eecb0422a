"""Penstock: asynchronous, queue-based LLM generation jobs on your own GPUs.

The bare install is the Python client (`from penstock import Client`); the rooms behind it need the extras
`[platform]` and `[worker]`, and are imported by their own names.
"""

__version__ = "0.1.0"
