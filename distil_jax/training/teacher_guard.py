"""Watches whether a moving teacher can still read the feedback.

A moving average of a student that never reads feedback may forget how to. So
now and then the teacher answers problems with their feedback in its prompt, and
its accuracy is compared with that at the start.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

# The first looks, whose mean is the start's accuracy. Later looks are averaged
# over about as many.
NUM_LOOKS = 5


@struct.dataclass
class GuardState:
  """Holds the guard's observations of the teacher. Scalars.

  Attributes:
    num_looks: number of looks at the teacher, int32.
    start: mean accuracy over the first `NUM_LOOKS` looks.
    accuracy: moving average of the accuracy.
    is_holding: True while the teacher may not follow the student.
  """

  num_looks: Any
  start: Any
  accuracy: Any
  is_holding: Any


def init_state() -> GuardState:
  """Returns the state before the first look."""
  return GuardState(
    num_looks=jnp.int32(0),
    start=jnp.float32(0),
    accuracy=jnp.float32(0),
    is_holding=jnp.asarray(False),
  )


def look(
  state: GuardState,
  num_correct: jax.Array,
  num_answers: jax.Array,
  *,
  margin: float,
) -> GuardState:
  """Returns the state after one more look at the teacher.

  The first looks all count the same, later ones by a moving average. The
  teacher is held while its accuracy is more than the margin below the start's.

  Args:
    state: before this look.
    num_correct: number of correct answers.
    num_answers: number of answers; without any nothing changes.
    margin: how far the accuracy may fall.
  """
  seen = num_correct / jnp.maximum(num_answers, 1)
  num_looks = state.num_looks + 1
  # 1/n makes a plain mean of the first looks; a constant share, then, a moving
  # average.
  share = 1.0 / jnp.minimum(num_looks, NUM_LOOKS)
  accuracy = state.accuracy + share * (seen - state.accuracy)
  is_start = num_looks <= NUM_LOOKS
  start = jnp.where(is_start, accuracy, state.start)
  after = GuardState(
    num_looks=num_looks,
    start=start,
    accuracy=accuracy,
    is_holding=accuracy < start - margin,
  )
  # Without answers 0 of 0 were correct, which is no accuracy of 0.
  return jax.tree.map(
    lambda a, b: jnp.where(num_answers > 0, a, b).astype(b.dtype), after, state
  )
