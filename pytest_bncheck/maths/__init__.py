"""Formulas, in numpy alone: running statistics, differences of predictions, the verdict."""
