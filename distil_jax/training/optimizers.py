"""Builds AdamW with warm-up, schedule and gradient clipping."""

from typing import Literal

import optax


def make_schedule(
  *,
  learning_rate: float,
  warmup_steps: int = 0,
  schedule: Literal["constant", "cosine"] = "constant",
  num_steps: int | None = None,
) -> optax.Schedule:
  """Returns the learning rate at each training step, with linear warm-up.

  Step n of the warm-up uses (n + 1) / warmup_steps of the rate, so that the
  first step already moves. The cosine falls to 0 at `num_steps`.

  Raises:
    ValueError: a cosine without `num_steps`.
  """
  if schedule == "cosine":
    if num_steps is None:
      raise ValueError("schedule='cosine' needs num_steps")
    # Joined schedules count from their own beginning, so the warm-up is taken
    # off.
    decay_steps = max(num_steps - warmup_steps, 1)
    main = optax.cosine_decay_schedule(learning_rate, decay_steps)
  else:
    main = optax.constant_schedule(learning_rate)
  if warmup_steps:
    first = learning_rate / warmup_steps
    # It begins at 1/n of the rate, so its last step has the whole.
    warmup = optax.linear_schedule(first, learning_rate, warmup_steps - 1)
    main = optax.join_schedules([warmup, main], [warmup_steps])
  return main


def make_optimizer(
  schedule: optax.Schedule,
  *,
  beta1: float = 0.9,
  beta2: float = 0.999,
  epsilon: float = 1e-8,
  weight_decay: float = 0.01,
  max_gradient_norm: float | None = 1.0,
  updates_per_step: int = 1,
) -> optax.GradientTransformation:
  """Returns AdamW behind a clip of the global norm.

  Args:
    schedule: from `make_schedule`; counts training steps.
    beta1, beta2, epsilon, weight_decay: of AdamW.
    max_gradient_norm: global norm to which gradients are clipped; None means
      no clip.
    updates_per_step: updates of one training step, one for each mini-batch.
  """
  # optax counts updates, the schedule counts steps.
  rate = lambda count: schedule(count // updates_per_step)  # noqa: E731
  adamw = optax.adamw(
    rate,
    b1=beta1,
    b2=beta2,
    eps=epsilon,
    weight_decay=weight_decay,
  )
  if max_gradient_norm is None:
    return adamw
  # The clip comes first, or the moments would remember what it cuts off.
  return optax.chain(optax.clip_by_global_norm(max_gradient_norm), adamw)
