"""Computes credit over time: the cost that follows a token's choice.

See "Reinforcement Learning from Rich Feedback with Distributional DAgger"
(arXiv:2606.05152). Costs are ≥ 0 and are to be minimised.

A mask may have holes where a tool wrote between two turns of the student. A
hole has no cost and gets no credit. Time is counted in tokens that count, so
that the tokens before and after a hole are neighbours.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from distil_jax.ops import masking


class FutureSums(NamedTuple):
  """Sums over the tokens after a stretch of time.

  Attributes:
    costs: (discounted) sum of their costs, nats. Shape `[B]`.
    counts: the same sum over 1 in place of costs; 0 if no token that counts
      comes later. Shape `[B]`.
  """

  costs: jax.Array
  counts: jax.Array


def nothing_later(batch_size: int, dtype=jnp.float32) -> FutureSums:
  """Returns the sums after the last token: zeros."""
  return FutureSums(jnp.zeros(batch_size, dtype), jnp.zeros(batch_size, dtype))


def future_costs(
  costs: jax.Array,
  mask: jax.Array,
  *,
  discount: float = 1.0,
  normalize: bool = True,
  average_cost: jax.Array | float | None = None,
) -> jax.Array:
  """Returns the cost still to come after each token.

    Rₜ = Σ_{i>t} γ^{i−t−1} Hᵢ        divided, if normalised, by the same sum
                                     over 1 in place of Hᵢ

  The sum begins at t + 1: the cost at t does not depend on the token chosen
  at t. Positions outside the mask contribute nothing, whatever stands there,
  and take no time: i and t are the numbers of tokens that count.

  With an average cost ρ, Hᵢ − ρ stands in place of Hᵢ, as in average-cost
  control: a token of average cost is then free, so that nothing is gained by
  stopping. Such costs, and R, may be negative.

  Args:
    costs: cost of each token, nats. Shape `[B, T]`.
    mask: 1 where the token counts. Shape `[B, T]`.
    discount: γ in (0, 1].
    normalize: take the (discounted) mean of the future costs, not their sum.
    average_cost: ρ, nats, scalar; None means 0.

  Returns:
    Nats, also in holes. Shape `[B, T]`; 0 at and after the last token that
    counts.

  Raises:
    ValueError: a discount outside (0, 1].
  """
  chex.assert_rank([costs, mask], 2)
  if average_cost is not None:
    chex.assert_rank(average_cost, 0)
    costs = costs - average_cost
  costs = masking.where_counts(costs, mask)
  return future_costs_before(
    costs,
    mask,
    nothing_later(costs.shape[0], costs.dtype),
    discount=discount,
    normalize=normalize,
  )[0]


def future_costs_before(
  costs: jax.Array,
  mask: jax.Array,
  later: FutureSums,
  *,
  discount: float = 1.0,
  normalize: bool = True,
) -> tuple[jax.Array, FutureSums]:
  """Returns `future_costs` of a stretch of time whose future is known.

  Args:
    costs, mask: of the stretch. Shape `[B, t]` each.
    later: from the stretch that follows, or `nothing_later`.
    discount, normalize: as for `future_costs`.

  Returns:
    Rₜ, nats, `[B, t]`, and the sums that lie ahead of the stretch before.

  Raises:
    ValueError: a discount outside (0, 1].
  """
  if not 0 < discount <= 1:
    raise ValueError(
      f"discount={discount} is outside (0, 1]; 1 for none, and future_weight=0 "
      "for no future at all"
    )
  chex.assert_rank([costs, mask], 2)
  chex.assert_equal_shape([costs, mask])
  costs = masking.where_counts(costs, mask)
  counts = mask.astype(costs.dtype)
  totals, total = _after(costs, mask, later.costs, discount)
  weights, weight = _after(counts, mask, later.counts, discount)
  if normalize:
    # `where` computes both sides, and the guard keeps 0 / 0 out of the one that
    # is not taken.
    totals = jnp.where(weights > 0, totals / jnp.maximum(weights, 1e-30), 0.0)
  return totals, FutureSums(total, weight)


def leave_one_out_baseline(
  future_costs: jax.Array, mask: jax.Array, *, group_size: int
) -> jax.Array:
  """Returns the mean future cost of the group's others at the same position.

  It does not depend on the token that it is subtracted from, so it leaves the
  expected gradient unchanged. A member at its last token is alive, with R = 0;
  one that has ended before is not counted. If no other member is alive the
  baseline is 0.

  Positions are columns. What tools wrote shifts one member against another,
  which changes nothing of the above. A member that reads a tool's output is
  alive, with what is still to come as its R.

  Args:
    future_costs: nats. Shape `[B, T]`, the members of a group in a row.
    mask: 1 where the sequence is alive. Shape `[B, T]`.
    group_size: G; must divide B.

  Returns:
    Nats. Shape `[B, T]`; 0 where the sequence is not alive.

  Raises:
    ValueError: a group size that is not above 0, or does not divide the batch.
  """
  chex.assert_rank([future_costs, mask], 2)
  chex.assert_equal_shape([future_costs, mask])
  alive = masking.split_groups(mask.astype(jnp.float32), group_size)
  values = masking.split_groups(
    masking.where_counts(future_costs, mask), group_size
  )
  others = jnp.sum(alive, axis=1, keepdims=True) - alive
  sums = jnp.sum(values, axis=1, keepdims=True) - values
  means = jnp.where(others > 0, sums / jnp.maximum(others, 1.0), 0.0)
  # Where a sequence has ended there is nothing to subtract from.
  return (means * alive).reshape(mask.shape)


def batch_mean_baseline(future_costs: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the mean future cost of all sequences alive at the same position.

  The sequence itself is one of them, so that the baseline is biased towards
  what it is subtracted from, by 1 part in the number alive. It serves problems
  with one sample, which have no group.

  Args:
    future_costs: nats. Shape `[B, T]`.
    mask: 1 where the sequence is alive, as for `leave_one_out_baseline`.
      Shape `[B, T]`.

  Returns:
    Nats. Shape `[B, T]`; 0 where the sequence is not alive.
  """
  chex.assert_rank([future_costs, mask], 2)
  chex.assert_equal_shape([future_costs, mask])
  values = masking.where_counts(future_costs, mask)
  alive = mask.astype(values.dtype)
  num_alive = jnp.maximum(jnp.sum(alive, axis=0, keepdims=True), 1)
  return jnp.sum(values, axis=0, keepdims=True) / num_alive * alive


def is_followed(mask: jax.Array, later: FutureSums | None = None) -> jax.Array:
  """Returns 1 where a token that counts comes later, also in holes.

  Multiplied by the mask it leaves out only the last token that counts of each
  sequence: one before a hole is followed.

  Args:
    mask: 1 where the token counts. Shape `[B, T]`.
    later: sums over what follows; None means that nothing follows.

  Returns:
    In the mask's dtype. Shape `[B, T]`.
  """
  chex.assert_rank(mask, 2)
  # Counted in integers: bool cannot count at all, and bfloat16 not beyond 256.
  counts = jnp.asarray(mask, jnp.int32)
  num_after = jax.lax.cumsum(counts, axis=1, reverse=True) - counts
  if later is not None:
    num_after = num_after + (later.counts > 0)[:, None]
  return (num_after > 0).astype(mask.dtype)


def _after(
  values: jax.Array, mask: jax.Array, start: jax.Array, discount: float
) -> tuple[jax.Array, jax.Array]:
  """Returns Σ_{i>t} γ^{i−t−1} valuesᵢ by one reverse scan, and the whole sum.

  Values must be 0 where the mask is.
  """
  # A hole takes no time: there the discount is 1.
  rates = jnp.where(mask.astype(bool), discount, 1.0).astype(values.dtype)
  total, sums = jax.lax.scan(
    _add_value, start, (values.T, rates.T), reverse=True
  )
  return sums.T, total


# JAX traces a scan anew for a body that is a new function at each call.
def _add_value(accumulated, column):
  value, rate = column
  # The sum is handed out before the token's own value joins it, because the
  # cost at t does not depend on the token chosen at t.
  return value + rate * accumulated, accumulated
