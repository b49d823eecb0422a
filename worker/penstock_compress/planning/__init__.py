"""What a model would need of a GPU, and what it would cost there: by arithmetic, before anything is loaded."""

from penstock_compress.planning.estimate import Estimate, Plan, Workload
from penstock_compress.planning.gpus import GPUS, Gpu
from penstock_compress.planning.inventory import Inventory, take_inventory

__all__ = ["GPUS", "Estimate", "Gpu", "Inventory", "Plan", "Workload", "take_inventory"]
