"""Defines the error of planning."""


class PlanError(ValueError):
  """Says why a run cannot be planned for some hardware."""
