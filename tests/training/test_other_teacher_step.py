"""The training step with a teacher of another width, family and vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax import config
from distil_jax.models import decoder, layers, sharding
from distil_jax.objectives import teachers
from distil_jax.training import build_step, train_state
from tests import networks, references
from tests.networks import assert_close, distance
from tests.training import test_shared_prefixes

# Of the 24 entries of both, so many are tokens.
NUM_TOKENS = 22
RATE = 0.3
SGD = optax.sgd(RATE)
FROZEN = config.TeacherConfig(parameters="frozen")
# Norms after attention and MLP, of all heads' queries; another width and depth.
OLMO = {
  "family": "olmo2",
  "norm_placement": "after",
  "query_key_norm": "all_heads",
}
GEMMA = {
  "family": "gemma3_text",
  "norm_placement": "both",
  "norm_adds_one": True,
  "activation": "gelu_tanh",
  "embedding_scale": 12**0.5,
  "tie_embeddings": True,
  "sliding_window": 3,
  "sliding_layers": (True, False),
}
KINDS = {
  "distil": (
    config.DistilConfig(
      **{**networks.PUBLISHED, "local_cost": "reverse_kl", "cost": "kl"},
      top_k=6,
    ),
    references.distil,
    {"local_cost": "reverse_kl", "cost": "kl", "top_k": 6},
  ),
  "sdpo": (
    config.SDPOConfig(alpha=0.5, top_k=None),
    references.sdpo,
    {"alpha": 0.5, "top_k": None},
  ),
  "opsd": (
    config.OPSDConfig(top_k=6, token_clip=0.02, temperature=1.1),
    references.opsd,
    {"beta": 0.5, "top_k": 6, "token_clip": 0.02, "temperature": 1.1},
  ),
  "minillm": (config.MiniLLMConfig(), references.minillm, {}),
}


@pytest.fixture(scope="module")
def student():
  return networks.network(seed=3, num_layers=1, num_tokens=NUM_TOKENS)


@pytest.fixture(scope="module")
def teacher():
  return networks.network(
    seed=4, width=12, head_size=4, mlp_size=20, num_layers=2, **GEMMA
  )


@pytest.fixture(scope="module")
def batch():
  return networks.random_batch(seed=3, vocab_size=NUM_TOKENS)


def other(teacher):
  return teachers.OtherNetwork(teacher.graphdef)


def gradients(student, teacher, objective, section=FROZEN, **settings):
  made = build_step.gradients(
    objective,
    section,
    graphdef=student.graphdef,
    teacher_network=other(teacher),
    group_size=4,
    num_sequences=8,
    **settings,
  )
  return jax.jit(made)


def in_float64(network):
  """The same weights in a network that computes in float64."""
  config_ = {
    **vars(network.config),
    "param_dtype": "float64",
    "compute_dtype": "float64",
  }
  graphdef, _ = decoder.make(type(network.config)(**config_))
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), network.params)
  return networks.Network(network.config, graphdef, params)


def logits(params, graphdef, batch, ids, mask):
  """`[B, T, V]`: all of them in memory."""
  hidden = decoder.hidden_states(
    graphdef,
    params,
    jnp.concatenate([ids, batch.completion_ids], axis=1),
    jnp.concatenate([mask, batch.completion_mask], axis=1),
  )
  return hidden[:, ids.shape[1] - 1 : -1] @ layers.unembedding(params)


@pytest.fixture(scope="module")
def dense(student, teacher, batch):
  """Teacher's logits; the student's, with the gradient by its parameters."""
  with jax.enable_x64(True):
    wide, expert = in_float64(student), in_float64(teacher)
    expert_logits = jax.jit(
      functools.partial(logits, graphdef=expert.graphdef, batch=batch)
    )(
      expert.params,
      ids=batch.teacher_prompt_ids,
      mask=batch.teacher_prompt_mask,
    )

    def of_student(params):
      return logits(
        params, wide.graphdef, batch, batch.prompt_ids, batch.prompt_mask
      )

    own_logits = jax.jit(of_student)(wide.params)
    pull_back = jax.jit(lambda by: jax.vjp(of_student, wide.params)[1](by))
  return expert_logits, own_logits, pull_back


def reference(dense, batch, loss):
  """Value and gradient of a loss of logits cut to the tokens, in float64."""
  expert_logits, own_logits, pull_back = dense
  with jax.enable_x64(True):
    value, by_logits = jax.jit(jax.value_and_grad(loss))(
      own_logits, expert_logits[..., :NUM_TOKENS]
    )
    assert value.dtype == jnp.float64
    return value, pull_back(by_logits)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_dense_logits_in_float64(
  student, teacher, batch, dense, kind
):
  """On eight devices, in micro-batches that split groups, in chunks."""
  objective, of_logits, settings = KINDS[kind]
  objective = objective.model_copy(update={"chunk_size": 2})

  def loss(own, expert):
    return of_logits(
      own[..., :NUM_TOKENS],
      expert,
      batch.completion_ids,
      batch.completion_mask,
      sample_mask=batch.sample_mask,
      **settings,
    ).value

  value, expected = reference(dense, batch, loss)
  mesh = sharding.make_mesh(2, 2, 2)
  made = gradients(student, teacher, objective, micro_batch_size=4)
  with jax.set_mesh(mesh):
    params, expert = (
      jax.device_put(x.params, decoder.shardings(mesh, x.params))
      for x in (student, teacher)
    )
    placed = sharding.put_batch(mesh, batch)
    gradient, found, metrics = made(params, expert, placed, jax.random.key(0))
  np.testing.assert_allclose(found, value, rtol=1e-5)
  assert min(np.abs(g).max() for g in jax.tree.leaves(gradient)) > 1e-4
  assert_close(gradient, expected)
  assert np.isfinite(list(map(float, metrics.values()))).all()


def test_a_whole_list_teaches_as_the_distribution_does(student, teacher, batch):
  """With as many candidates as tokens nothing of the teacher is missing."""
  objective = config.DistilConfig(**networks.PUBLISHED)
  arrays = student.params, teacher.params, batch, jax.random.key(0)
  whole = gradients(student, teacher, objective)(*arrays)
  for tail in (True, False):
    section = config.TeacherConfig(access="top_k", top_k=NUM_TOKENS)
    listed = gradients(
      student,
      teacher,
      objective.model_copy(update={"tail": tail}),
      section,
      micro_batch_size=2,
    )(*arrays)
    assert_close(listed[0], whole[0])
    np.testing.assert_allclose(listed[1], whole[1], rtol=1e-5)


def test_samples_come_from_the_teachers_network(student, teacher, batch, dense):
  passes = teachers.forward_passes(
    teachers.Network(student.graphdef, other(teacher)),
    access="samples",
    list_size=2000,
  )
  keys = jax.random.split(jax.random.key(1), 8)
  ids, log_probs, _ = jax.jit(passes.ask_fn)(
    student.params, teacher.params, batch, keys
  )
  assert np.asarray(ids).max() < NUM_TOKENS
  np.testing.assert_allclose(log_probs, -np.log(2000), rtol=1e-6)
  exact = np.asarray(dense[0])[..., :NUM_TOKENS]
  probs = np.asarray(jax.nn.softmax(exact.astype(np.float32)))
  for row, column in np.argwhere(np.asarray(batch.completion_mask) == 1):
    shares = np.bincount(ids[row, column], minlength=NUM_TOKENS) / 2000
    # Six standard deviations of a share of samples.
    assert np.abs(shares - probs[row, column]).max() < 6 * 0.5 / 2000**0.5
  objective = config.DistilConfig(**networks.PUBLISHED)
  section = config.TeacherConfig(access="samples", num_samples=2)
  made = gradients(student, teacher, objective, section, micro_batch_size=4)
  gradient, value, _ = made(
    student.params, teacher.params, batch, jax.random.key(0)
  )
  assert np.isfinite(float(value))
  assert min(np.abs(g).max() for g in jax.tree.leaves(gradient)) > 1e-4


def test_prefixes_may_be_shared(student):
  teacher = networks.network(
    seed=4, width=12, head_size=4, mlp_size=20, num_layers=1, **OLMO
  )
  made = gradients(student, teacher, config.DistilConfig(chunk_size=2))
  found = [
    made(student.params, teacher.params, batch, jax.random.key(0))
    for batch in test_shared_prefixes.batches()
  ]
  assert_close(found[1][0], found[0][0])


def test_a_step_leaves_the_teacher_and_keeps_it_out_of_the_state(
  student, teacher, batch
):
  """A teacher in bfloat16, a student in float32."""
  halved = networks.config_of(
    **{
      **vars(teacher.config),
      "param_dtype": "bfloat16",
      "compute_dtype": "bfloat16",
    }
  )
  half = networks.Network(
    halved,
    decoder.make(halved)[0],
    jax.tree.map(lambda x: x.astype(jnp.bfloat16), teacher.params),
  )
  state = train_state.init_state(
    student.params, optimizer=SGD, keeps_teacher=False, seed=0
  )
  after = []
  for expert in (teacher, half):
    step = build_step.train_step(
      config.SDPOConfig(),
      FROZEN,
      graphdef=student.graphdef,
      teacher_network=other(expert),
      optimizer=SGD,
      group_size=4,
      num_sequences=8,
      mini_batch_size=4,
    )
    after.append(jax.jit(step)(state, batch, expert.params)[0])
  exact, rounded = after
  assert int(rounded.step) == 1
  assert rounded.teacher_params is None
  for new, old in zip(*map(jax.tree.leaves, (rounded, state)), strict=True):
    assert new.dtype == old.dtype
  moved = distance(exact.params, student.params)
  assert moved > 1e-2
  assert 0 < distance(rounded.params, exact.params) < 0.1 * moved


def test_another_teacher_teaches_something_else(student, teacher, batch):
  made = gradients(student, teacher, config.SDPOConfig())
  arrays = batch, jax.random.key(0)
  one = made(student.params, teacher.params, *arrays)[0]
  changed = networks.random_params(teacher.params, seed=9)
  assert distance(made(student.params, changed, *arrays)[0], one) > 1e-3
