"""Has the teacher read a prompt of its own for each turn of an episode."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distil_jax.objectives.base import teacher_mask
from distil_jax.types import TrainBatch


def states_by_turn(
  first: jax.Array, batch: TrainBatch, score: Callable[..., jax.Array]
) -> jax.Array:
  """Returns each token's state under the teacher's prompt of its own turn.

  A token's state depends on the prompt, so every prompt reads the completion
  again. All turns of an episode stay one row: credit crosses them.

  Args:
    first: states under the prompt of the first turn. Shape `[b, T, D]`.
    batch: with prompts of later turns.
    score: from ids and mask of a prompt, `[b, S']` each, to states.
  """
  taught = teacher_mask(batch).astype(bool)

  def next_turn(states, turn):
    number, ids, mask = turn
    is_its_own = taught & (batch.turn_numbers == number)

    def replaced():
      found = score(ids, mask)
      return jnp.where(is_its_own[..., None], found, states)

    # Most episodes may end early, and then nobody needs the pass.
    return jax.lax.cond(jnp.any(is_its_own), replaced, lambda: states), None

  ids, mask = (
    jnp.moveaxis(x, 1, 0)
    for x in (batch.later_prompt_ids, batch.later_prompt_mask)
  )
  numbers = jnp.arange(1, len(ids) + 1)
  return jax.lax.scan(next_turn, first, (numbers, ids, mask))[0]
