"""Defines the training state and how its arrays are sharded."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from distil_jax.models import decoder, lora, sharding
from distil_jax.training import teacher_guard


@struct.dataclass
class TrainState:
  """Everything that one training step hands to the next.

  A tree of shardings or of shapes has the same fields.

  Attributes:
    step: training steps done. Scalar, int32.
    params: the student's.
    teacher_params: EMA or frozen parameters; None if the teacher is the
      current student, or there is none.
    opt_state: the optimizer's.
    key: raw key data of the run; each step folds its number in. uint32.
    guard: the state of the teacher's guard; None without a guard.
    initial_params: what a guarded teacher goes back to; None if it does not.
    base_params: frozen parameters, of which the trees above hold the adapters
      alone; None without adapters. Checkpoints leave it out.
  """

  step: Any
  params: Any
  teacher_params: Any
  opt_state: Any
  key: Any
  guard: Any = None
  initial_params: Any = None
  base_params: Any = None

  @property
  def student_params(self) -> Any:
    """The parameters of the student's network."""
    return self.whole(self.params)

  def whole(self, params: Any) -> Any:
    """Returns the network's parameters with these adapters, or as they are."""
    return lora.join(self.base_params, params)


def init_state(
  params: decoder.Params,
  *,
  optimizer: optax.GradientTransformation,
  keeps_teacher: bool,
  seed: int,
  guard_action: Literal["freeze", "roll_back"] | None = None,
  teacher_dtype: Any = None,
  base_params: decoder.Params | None = None,
) -> TrainState:
  """Returns the state before the first step.

  The teacher starts at the initial weights.

  Args:
    params: the student's initial parameters, or its adapters.
    optimizer: from `make_optimizer`.
    keeps_teacher: whether the teacher has parameters of its own.
    seed: of the run's key.
    guard_action: what the teacher's guard does; None means no guard.
    teacher_dtype: type of the teacher's parameters; None means the student's.
    base_params: what the adapters stand beside; None without adapters.
  """

  def copied(is_kept, dtype=None):
    # Copied, not shared: the step donates its state, and a buffer can be
    # donated only once.
    copy = functools.partial(jnp.array, dtype=dtype)
    return jax.tree.map(copy, params) if is_kept else None

  return TrainState(
    step=jnp.int32(0),
    params=params,
    teacher_params=copied(keeps_teacher, teacher_dtype),
    # Moments are float32 even if the parameters are not: in bfloat16 the second
    # moment would stop moving.
    opt_state=optimizer.init(
      jax.tree.map(lambda p: p.astype(jnp.float32), params)
    ),
    key=jax.random.key_data(jax.random.key(seed)),
    guard=teacher_guard.init_state() if guard_action else None,
    initial_params=copied(guard_action == "roll_back"),
    base_params=base_params,
  )


def state_shardings(
  state: TrainState,
  mesh: jax.sharding.Mesh,
  optimizer: optax.GradientTransformation,
) -> TrainState:
  """Returns the `NamedSharding` of each array of the state, as the same tree.

  Moments and masters are sharded like their parameters, and so are their means
  along an axis, but for that axis; the rest is on every device.
  """
  params = decoder.shardings(mesh, state.params)
  replicated = sharding.sharding(mesh)

  def kept(tree):
    return params if tree is not None else None

  return TrainState(
    step=replicated,
    params=params,
    teacher_params=kept(state.teacher_params),
    # Without shardings, jit would put all moments on one device.
    opt_state=optax.tree_utils.tree_map_params(
      optimizer,
      _moment_sharding,
      state.opt_state,
      state.params,
      params,
      transform_non_params=lambda _: replicated,
      is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    ),
    key=replicated,
    guard=jax.tree.map(lambda _: replicated, state.guard),
    initial_params=kept(state.initial_params),
    base_params=None
    if state.base_params is None
    else decoder.shardings(mesh, state.base_params),
  )


def _moment_sharding(moment: Any, param: Any, of_param: Any) -> Any:
  """Returns the sharding of what an optimizer keeps of a parameter.

  Args:
    moment: shape of what is kept; a `MaskedNode` if nothing is.
    param: shape of the parameter.
    of_param: the parameter's sharding.
  """
  if isinstance(moment, optax.MaskedNode):
    return moment
  if moment.shape == param.shape:
    return of_param
  axes = (*of_param.spec, *(None,) * (param.ndim - len(of_param.spec)))
  for axis in range(param.ndim):
    kept = [i for i in range(param.ndim) if i != axis]
    if moment.shape == tuple(param.shape[i] for i in kept):
      spec = jax.sharding.PartitionSpec(*(axes[i] for i in kept))
      return jax.sharding.NamedSharding(of_param.mesh, spec)
  return jax.sharding.NamedSharding(of_param.mesh, jax.sharding.PartitionSpec())
