"""Slots that shadow jobs leave free on every worker, so that a job that somebody waits for has one at once.

    slots:  [ others' jobs | shadow jobs ........ | kept free: a quarter, at least one ]

Whoever takes a kept slot has the worker give a shadow job back (`penstock_worker.way`), until as many are free again. A
worker with a single slot keeps none: there a job waits for the shadow job that runs.
"""

from sqlalchemy import ColumnElement, SQLColumnExpression, case, func

_PART = 4


def kept_free(slots: int) -> int:
    """How many of a worker's slots no shadow job may take."""
    return 0 if slots == 1 else max(slots // _PART, 1)


def kept_free_of(slots: SQLColumnExpression[int]) -> ColumnElement[int]:
    """The same in SQL."""
    return case((slots == 1, 0), else_=func.greatest(slots // _PART, 1))
