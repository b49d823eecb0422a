"""Smaller versions of a model: weights rounded to fewer bits, with or without calibration, as compressed-tensors."""

from penstock_compress.compressing import Outcome, compress
from penstock_compress.errors import CalibrationUnusable, CompressError, InvalidRecipe, SourceUnusable, TargetUnusable
from penstock_compress.recipe import METHODS, SCHEMES, Recipe

__all__ = [
    "METHODS",
    "SCHEMES",
    "CalibrationUnusable",
    "CompressError",
    "InvalidRecipe",
    "Outcome",
    "Recipe",
    "SourceUnusable",
    "TargetUnusable",
    "compress",
]
