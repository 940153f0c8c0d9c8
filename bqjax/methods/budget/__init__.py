"""Rate-distortion allocation: every layer's curve measured, and the settings that fit a size or keep a drop."""

from bqjax.methods.budget.method import WithinBudget
from bqjax.methods.budget.plan import Blocks, BudgetConfig, Layer, Planned, Values
from bqjax.methods.budget.search import BudgetPlan, find_plan

__all__ = ["Blocks", "BudgetConfig", "BudgetPlan", "Layer", "Planned", "Values", "WithinBudget", "find_plan"]
