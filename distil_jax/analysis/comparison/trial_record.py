"""Names a trial, and says what its record and its learning curve hold."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

# Seeds that choose learning rates start here; reported seeds start at 0.
FIRST_TUNING_SEED = 1000


@dataclasses.dataclass(frozen=True)
class Trial:
  """Identifies a trial; its line in the file begins with these fields."""

  family: str
  arm: str
  base: int
  seed: int
  learning_rate: float

  @property
  def is_tuning(self) -> bool:
    return self.seed >= FIRST_TUNING_SEED


Record = Mapping[str, Any]
Records = Sequence[Record]
# Finished trials with their records.
Done = Mapping[Trial, Record]
# Reported records by family, then by arm; without those that have none.
Found = Mapping[str, Mapping[str, Records]]


def lost_points(
  curve: Sequence[Mapping[str, float]], *, every: int, num_steps: int
) -> list[dict[str, float]]:
  """Returns the points that are missing on the curve of a diverged run.

  A run that diverges has lost what it learned, so its accuracy counts as 0.

  Args:
    curve: The points before the run diverged.
    every: Steps between two points.
    num_steps: Steps that the run was to have.
  """
  last = curve[-1] if curve else {"step": 0}
  steps = range(int(last["step"]) + every, num_steps + 1, every)
  return [{**last, "avg": 0.0, "step": step} for step in steps]
