"""What a training step that is cut over devices holds, and what it gathers.

Nothing here runs: programs are compiled from shapes.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from distil_jax import config
from distil_jax.models import decoder, sharding
from distil_jax.planning import abstract_inputs
from distil_jax.training import build_step, optimizers, train_state
from tests import networks

# Parameters are most of what a step holds, as in large networks.
SIZES = {
  "vocab_size": 1024,
  "width": 256,
  "num_layers": 8,
  "num_heads": 8,
  "num_kv_heads": 4,
  "head_size": 32,
  "mlp_size": 768,
}
LAYER = SIZES["width"] * SIZES["mlp_size"]


@functools.cache
def compiled(length: int = 64, batch_size: int = 8, **axes: int):
  """A training step on as many devices as the axes have."""
  network = networks.config_of(**SIZES)
  graphdef, template = decoder.make(network)
  count = math.prod(axes.values())
  mesh = sharding.make_mesh(**axes, devices=jax.devices()[:count])
  optimizer = optimizers.make_optimizer(optax.constant_schedule(1e-3))
  step = build_step.train_step(
    config.DistilConfig(),
    config.TeacherConfig(parameters="ema"),
    graphdef=graphdef,
    optimizer=optimizer,
    group_size=2,
    num_sequences=batch_size,
  )
  init = functools.partial(
    train_state.init_state, optimizer=optimizer, keeps_teacher=True, seed=0
  )
  state = abstract_inputs.train_state(init, template, mesh, optimizer)
  places = jax.tree.map(lambda x: x.sharding, state)
  with jax.set_mesh(mesh):
    batch = abstract_inputs.batch(
      mesh,
      num_sequences=batch_size,
      prompt_length=64,
      teacher_prompt_length=64,
      completion_length=length,
    )
    step_fn = jax.jit(step, donate_argnums=0, out_shardings=(places, None))
    return step_fn.lower(state, batch).compile()


def temporary_bytes(**settings) -> int:
  """Of one device."""
  return compiled(**settings).memory_analysis().temp_size_in_bytes


def gathered(text: str) -> list[tuple[int, ...]]:
  """Shapes of all that is gathered, several at once or one."""
  found = re.findall(r" = (.*?) all-gather(?:-start)?\(", text)
  dims = re.findall(r"\w+\[([\d,]+)\]", " ".join(found))
  return [tuple(map(int, x.split(","))) for x in dims]


@pytest.mark.parametrize(
  ("axes", "least"), [({"fsdp": 4}, 3.5), ({"fsdp": 8}, 7.0)], ids=str
)
def test_memory_falls_with_the_devices_that_share_parameters(axes, least):
  alone, shared = compiled(fsdp=1), compiled(**axes)
  count = axes["fsdp"]
  before, after = (
    step.memory_analysis().temp_size_in_bytes for step in (alone, shared)
  )
  assert before / after >= least, (before, after)
  before, after = (
    step.memory_analysis().argument_size_in_bytes for step in (alone, shared)
  )
  assert before / after == pytest.approx(count, rel=0.01)


def test_memory_falls_with_the_devices_that_share_sequences():
  before, after = (
    temporary_bytes(length=960, batch_size=2, fsdp=1, context=count)
    for count in (1, 4)
  )
  assert before / after >= 3.5, (before, after)


@pytest.mark.parametrize(
  "axes", [{"fsdp": 4}, {"fsdp": 2, "context": 2, "tensor": 2}], ids=str
)
def test_of_parameters_one_layer_at_a_time_is_gathered(axes):
  shapes = gathered(compiled(**axes).as_text())
  # All of a matrix, where no axis tensor has a part of it.
  part = LAYER // axes.get("tensor", 1)
  assert part in map(math.prod, shapes)
  for shape in shapes:
    is_of_tokens = {64, 128} & set(shape)
    assert is_of_tokens or math.prod(shape) <= part, shape


def test_gathering_all_layers_would_be_seen():
  mesh = sharding.make_mesh(fsdp=4, devices=jax.devices()[:4])
  shape = (SIZES["num_layers"], SIZES["width"], SIZES["mlp_size"])
  place = sharding.sharding(mesh, "layers", "embed", "mlp")
  stacked = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
  whole = jax.jit(lambda x: x + 1, out_shardings=sharding.sharding(mesh))
  assert gathered(whole.lower(stacked).compile().as_text()) == [shape]
