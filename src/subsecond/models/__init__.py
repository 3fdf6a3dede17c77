"""Model families: from a checkpoint's configuration and tensor shapes to program and recipes."""

from subsecond.models.decoder import Built
from subsecond.models.recipe import Recipe, RowBlocks
from subsecond.models.registry import FAMILIES, build

__all__ = ["FAMILIES", "Built", "Recipe", "RowBlocks", "build"]
