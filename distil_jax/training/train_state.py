"""The training state and where its arrays live."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from distil_jax.models import decoder, sharding
from distil_jax.training import teacher_guard


@struct.dataclass
class TrainState:
  """Everything that one step hands to the next; or, in place of each array,
  its sharding or its shape.

  Attributes:
    step: training steps done. Scalar, int32.
    params: the student's.
    teacher_params: EMA or frozen parameters; None where the teacher is the
      current student, or there is none.
    opt_state: optax's.
    key: raw key data of the run; each step folds its number in. uint32.
    guard: what is known of a guarded teacher; None without a guard.
    initial_params: where a guarded teacher goes back to; None where it does
      not.
  """

  step: Any
  params: Any
  teacher_params: Any
  opt_state: Any
  key: Any
  guard: Any = None
  initial_params: Any = None


def init_state(
  params: decoder.Params,
  *,
  optimizer: optax.GradientTransformation,
  keeps_teacher: bool,
  seed: int,
  guard_action: Literal["freeze", "roll_back"] | None = None,
) -> TrainState:
  """State before the first step; the teacher starts at the initial weights."""

  def copied(is_kept):
    # Copied, not shared: the step donates its state, and a buffer can be
    # donated only once.
    return jax.tree.map(jnp.copy, params) if is_kept else None

  return TrainState(
    step=jnp.int32(0),
    params=params,
    teacher_params=copied(keeps_teacher),
    # Moments in float32 even where the parameters are not.
    opt_state=optimizer.init(
      jax.tree.map(lambda p: p.astype(jnp.float32), params)
    ),
    key=jax.random.key_data(jax.random.key(seed)),
    guard=teacher_guard.init_state() if guard_action else None,
    initial_params=copied(guard_action == "roll_back"),
  )


def state_shardings(
  state: TrainState,
  mesh: jax.sharding.Mesh,
  optimizer: optax.GradientTransformation,
) -> TrainState:
  """`NamedSharding` of each array of the state, same tree.

  Moments live where their parameters live; the rest is on every device.
  """
  params = decoder.shardings(mesh, state.params)
  replicated = sharding.sharding(mesh)

  def kept(tree):
    return params if tree is not None else None

  return TrainState(
    step=replicated,
    params=params,
    teacher_params=kept(state.teacher_params),
    opt_state=optax.tree_utils.tree_map_params(
      optimizer,
      lambda _, place: place,
      state.opt_state,
      params,
      transform_non_params=lambda _: replicated,
    ),
    key=replicated,
    guard=jax.tree.map(lambda _: replicated, state.guard),
    initial_params=kept(state.initial_params),
  )
