"""No compiled program of training or sampling holds the logits of a batch."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from distil_jax import config
from distil_jax.generation import sampler
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.models import decoder, layers
from distil_jax.objectives import scoring
from distil_jax.training import build_step, train_state
from distil_jax.types import TrainBatch
from tests import networks, references

B, S, T, V = 8, 16, 256, 50_000
LOGITS = B * T * V
SHAPE = re.compile(r"\b(?:[fs](?:8|16|32|64)|u(?:8|32)|bf16|pred)\[([\d,]+)\]")


@pytest.fixture(scope="module")
def network():
  """Shapes only; what is compiled here never runs."""
  config = networks.config_of(
    vocab_size=V, num_layers=1, num_heads=1, num_kv_heads=1
  )
  graphdef, template = decoder.make(config)
  return networks.Network(config, graphdef, template)


def ids(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def floats(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.fixture(scope="module")
def batch():
  return TrainBatch(
    prompt_ids=ids(B, S),
    prompt_mask=ids(B, S),
    teacher_prompt_ids=ids(B, 2 * S),
    teacher_prompt_mask=ids(B, 2 * S),
    completion_ids=ids(B, T),
    completion_mask=ids(B, T),
    sample_mask=ids(B),
    rewards=floats(B),
    old_log_probs=floats(B, T),
  )


def largest_array(compiled) -> int:
  """Entries of the largest array in the program, in any shape or dtype."""
  shapes = SHAPE.findall(compiled.as_text())
  return max(math.prod(map(int, dims.split(","))) for dims in shapes)


def compile_step(network, batch, chunk_size):
  optimizer = optax.sgd(0.1)
  step = build_step.train_step(
    config.DistilConfig(chunk_size=chunk_size),
    config.TeacherConfig(parameters="ema", ema_rate=0.1),
    graphdef=network.graphdef,
    optimizer=optimizer,
    group_size=2,
    num_sequences=B,
  )
  state = jax.eval_shape(
    functools.partial(
      train_state.init_state, optimizer=optimizer, keeps_teacher=True, seed=0
    ),
    network.params,
  )
  return jax.jit(step, donate_argnums=0).lower(state, batch).compile()


def test_a_training_step_never_holds_the_logits(network, batch):
  compiled = compile_step(network, batch, chunk_size=4)
  # The largest thing is a tile of logits, or the unembedding.
  assert largest_array(compiled) == max(B * 4 * V, V * network.config.width)
  assert compiled.memory_analysis().temp_size_in_bytes < LOGITS * 4 / 4


def test_a_chunk_is_chosen_where_none_is_given(network, batch):
  compiled = compile_step(network, batch, chunk_size=None)
  # Two chunks, rounded up to whole blocks.
  assert largest_array(compiled) < 0.55 * LOGITS


def test_logits_in_memory_would_be_seen(network, batch):
  """The same loss from whole logits trips both checks."""

  def loss(params, teacher, batch):
    completion = (batch.completion_ids, batch.completion_mask)
    score = functools.partial(
      scoring.completion_hidden_states, graphdef=network.graphdef
    )
    student = score(params, batch.prompt_ids, batch.prompt_mask, *completion)
    expert = score(
      teacher,
      batch.teacher_prompt_ids,
      batch.teacher_prompt_mask,
      *completion,
    )
    return references.distil(
      student @ layers.unembedding(params),
      expert @ layers.unembedding(teacher),
      *completion,
      sample_mask=batch.sample_mask,
    ).value

  lowered = jax.jit(jax.grad(loss)).lower(network.params, network.params, batch)
  compiled = lowered.compile()
  assert largest_array(compiled) >= LOGITS
  assert compiled.memory_analysis().temp_size_in_bytes >= LOGITS * 4


def test_sampling_holds_the_logits_of_one_token(network):
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (4, 2)))
  generate = functools.partial(
    sampler.generate,
    sampling=SamplingParams(max_tokens=T),
    graphdef=network.graphdef,
    eos_ids=(1,),
    pad_id=0,
  )
  lowered = jax.jit(generate).lower(network.params, ids(4, T), ids(4, T), keys)
  # A row of the vocabulary for each sample, rounded up to whole blocks.
  largest = max(V * network.config.width, 8 * (V + 256))
  assert largest_array(lowered.compile()) <= largest < 4 * T * V / 8
