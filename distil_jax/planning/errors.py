"""What cannot be planned."""


class PlanError(ValueError):
  """A machine or a program that cannot be planned; the message says why."""
