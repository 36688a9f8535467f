"""The samples of one problem: G sequences in a row of the batch."""

import jax


def split(values: jax.Array, group_size: int) -> jax.Array:
  """Cuts a batch into its groups.

  Args:
    values: the members of a group in a row. Shape `[B, ...]`.
    group_size: G; must divide B.

  Returns:
    Shape `[P, G, ...]`.

  Raises:
    ValueError: a group size that is not above 0, or does not divide the batch.
  """
  size = values.shape[0]
  if not group_size > 0:
    raise ValueError(
      f"group_size={group_size} must be at least 1, the number of samples of "
      f"each problem; it must divide the batch of {size} sequences"
    )
  if size % group_size:
    raise ValueError(
      f"group_size={group_size} does not divide the batch of {size} sequences"
    )
  return values.reshape(size // group_size, group_size, *values.shape[1:])
