"""Whether a teacher that moves can still read the feedback.

A moving average of a student that never reads feedback may forget how to. So
now and then the teacher answers, feedback before it, and is compared with what
it could do at the start.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

# Looks that the start is the mean of, and about as many that count later.
NUM_LOOKS = 5


@struct.dataclass
class GuardState:
  """What is known of the teacher. Scalars.

  Attributes:
    num_looks: how often it was looked at, int32.
    start: its accuracy over the first `NUM_LOOKS` looks.
    accuracy: its accuracy of late: a moving average.
    is_holding: whether it may not follow the student.
  """

  num_looks: Any
  start: Any
  accuracy: Any
  is_holding: Any


def init_state() -> GuardState:
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
  """Takes note of one look at the teacher.

  The first looks all count the same, later ones by a moving average. The
  teacher is held while its accuracy is more than the margin below its start.

  Args:
    state: before this look.
    num_correct: right answers.
    num_answers: answers; with none of them nothing changes.
    margin: how far the accuracy may fall.
  """
  seen = num_correct / jnp.maximum(num_answers, 1)
  num_looks = state.num_looks + 1
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
  return jax.tree.map(
    lambda a, b: jnp.where(num_answers > 0, a, b).astype(b.dtype), after, state
  )
