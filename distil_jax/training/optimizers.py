"""Builds optimizers and schedules from those of optax."""

import math
from typing import Any, Literal

import jax
import optax
import optax.contrib

# Root mean square of AdamW's updates in practice, which Muon's get too.
# See "Muon is Scalable for LLM Training" (arXiv:2502.16982).
_ADAMW_UPDATE_SIZE = 0.2
_AXES = optax.contrib.MuonDimensionNumbers


def make_schedule(
  *,
  learning_rate: float,
  warmup_steps: int = 0,
  schedule: Literal["constant", "linear", "cosine", "wsd"] = "constant",
  num_steps: int | None = None,
  decay_steps: int | None = None,
  final_learning_rate: float = 0.0,
) -> optax.Schedule:
  """Returns the learning rate at each training step, with linear warm-up.

  Step n of the warm-up uses (n + 1) / warmup_steps of the rate, so that the
  first step already moves.

  Args:
    learning_rate: Reached at the end of the warm-up.
    warmup_steps: Steps until then.
    schedule: `linear` and `cosine` fall after the warm-up, `wsd` is constant
      and falls linearly over the last steps.
    num_steps: Steps of the run, at which the fall ends.
    decay_steps: Steps of the fall. None means from the warm-up to `num_steps`.
    final_learning_rate: The rate at the end of the fall and after it.

  Raises:
    ValueError: the end of the fall is not given.
  """
  begin = warmup_steps
  if schedule == "wsd":
    if num_steps is None or decay_steps is None:
      raise ValueError("schedule='wsd' needs num_steps and decay_steps")
    begin = num_steps - decay_steps
  elif schedule != "constant" and decay_steps is None:
    if num_steps is None:
      raise ValueError(f"schedule='{schedule}' needs num_steps or decay_steps")
    # Joined schedules count from their own beginning, so the warm-up is taken
    # off.
    decay_steps = max(num_steps - warmup_steps, 1)
  parts, boundaries = [], []
  if warmup_steps:
    first = learning_rate / warmup_steps
    # It begins at 1/n of the rate, so its last step has the whole.
    parts.append(optax.linear_schedule(first, learning_rate, warmup_steps - 1))
    boundaries.append(warmup_steps)
  if begin > warmup_steps or schedule == "constant":
    parts.append(optax.constant_schedule(learning_rate))
    boundaries.append(begin)
  if decay_steps is not None and schedule != "constant":
    parts.append(
      _fall(
        learning_rate, final_learning_rate, decay_steps, schedule == "cosine"
      )
    )
  return optax.join_schedules(parts, boundaries[: len(parts) - 1])


def _fall(high, low, num_steps: int, is_cosine: bool) -> optax.Schedule:
  """Returns a schedule that ends at the low rate, and stays there."""
  if is_cosine and not low:
    return optax.cosine_decay_schedule(high, num_steps)
  if is_cosine:
    fall = optax.cosine_decay_schedule(high, num_steps, alpha=low / high)
  else:
    fall = optax.linear_schedule(high, low, num_steps)
  # Rounding may keep the fall from ending at exactly the low rate.
  return optax.join_schedules([fall, optax.constant_schedule(low)], [num_steps])


def make_optimizer(
  schedule: optax.Schedule,
  *,
  direction: optax.GradientTransformation | None = None,
  weight_decay: Any = 0.01,
  learning_rate_scales: Any = None,
  max_gradient_norm: float | None = 1.0,
  updates_per_step: int = 1,
) -> optax.GradientTransformation:
  """Returns an optimizer behind a clip of the global norm.

    Δθ = −η s (d + λ θ)

  Args:
    schedule: η, from `make_schedule`; counts training steps.
    direction: d; turns gradients into updates of a size that does not depend
      on theirs. None means that of AdamW.
    weight_decay: λ; a number, or a tree with one for each parameter.
    learning_rate_scales: s; a tree with a number for each parameter. None means
      1 for all.
    max_gradient_norm: global norm to which gradients are clipped; None means
      no clip.
    updates_per_step: updates of one training step, one for each mini-batch.
  """
  # optax counts updates, the schedule counts steps.
  rate = lambda count: schedule(count // updates_per_step)  # noqa: E731
  if isinstance(weight_decay, float | int):
    decay = optax.add_decayed_weights(weight_decay)
  else:
    decay = _decay_each(weight_decay)
  # The state of this chain has the tree of `optax.adamw`: checkpoints have it.
  parts = [
    optax.scale_by_adam() if direction is None else direction,
    decay,
    optax.scale_by_learning_rate(rate),
  ]
  if learning_rate_scales is not None:
    parts.append(_scale_each(learning_rate_scales))
  optimizer = optax.chain(*parts)
  if max_gradient_norm is None:
    return optimizer
  # The clip comes first, or the moments would remember what it cuts off.
  return optax.chain(optax.clip_by_global_norm(max_gradient_norm), optimizer)


def _decay_each(weight_decays: Any) -> optax.GradientTransformation:
  def decay(update, param, weight_decay):
    return update + weight_decay * param if weight_decay else update

  return optax.stateless(
    lambda updates, params: jax.tree.map(decay, updates, params, weight_decays)
  )


def _scale_each(scales: Any) -> optax.GradientTransformation:
  return optax.stateless(
    lambda updates, _: jax.tree.map(lambda u, s: s * u, updates, scales)
  )


def adafactor(
  *,
  decay_rate: float = 0.8,
  clipping_threshold: float | None = 1.0,
  multiply_by_parameter_scale: bool = False,
  min_dim_size_to_factor: int = 128,
) -> optax.GradientTransformation:
  """Returns the direction of Adafactor without momentum.

  See "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost"
  (arXiv:1804.04235). Unlike `optax.adafactor` it leaves learning rate and
  weight decay to `make_optimizer`, so that they mean the same for every
  optimizer.

  Args:
    decay_rate: of the mean squares, see the paper's equation for its β₂.
    clipping_threshold: root mean square to which the update of an array is
      scaled down; None means never.
    multiply_by_parameter_scale: whether updates are relative to the root mean
      square of their array.
    min_dim_size_to_factor: arrays with fewer rows or columns are not factored.
  """
  parts = [
    optax.scale_by_factored_rms(
      decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor
    )
  ]
  if clipping_threshold is not None:
    parts.append(optax.clip_by_block_rms(clipping_threshold))
  if multiply_by_parameter_scale:
    parts.append(optax.scale_by_param_block_rms())
  return optax.chain(*parts)


def muon(
  matrices: Any, *, momentum: float = 0.95, adam: optax.GradientTransformation
) -> optax.GradientTransformation:
  """Returns the direction of Muon for matrices, and another for the rest.

  Args:
    matrices: for each parameter the axes of its matrices, from
      `parameter_groups.matrices`; None for what is no matrix.
    momentum: decay of the momentum.
    adam: the direction of the other parameters.
  """
  is_leaf = lambda x: x is None or isinstance(x, _AXES)  # noqa: E731
  labels = jax.tree.map(
    lambda axes: "adam" if axes is None else "muon", matrices, is_leaf=is_leaf
  )
  masked = jax.tree.map(
    lambda axes: optax.MaskedNode() if axes is None else axes,
    matrices,
    is_leaf=is_leaf,
  )

  def resize(update, axes):
    size = max(
      math.prod(update.shape[i] for i in side)
      for side in (axes.reduction_axis, axes.output_axis)
    )
    return _ADAMW_UPDATE_SIZE * math.sqrt(size) * update

  scale = optax.stateless(
    lambda updates, _: jax.tree.map(resize, updates, masked)
  )
  of_matrices = optax.chain(
    optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=masked),
    scale,
  )
  return optax.partition({"muon": of_matrices, "adam": adam}, labels)
