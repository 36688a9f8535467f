"""Episodes in a training step: what tools wrote is read and not learned."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax import config
from distil_jax.models import decoder, layers, sharding
from distil_jax.training import build_step, train_state
from tests import networks, references
from tests.networks import assert_close, distance

GROUP_SIZE = 4
FROZEN = config.TeacherConfig(parameters="frozen")
# Stands only in what tools wrote, so that its embedding is theirs alone.
TOOL = networks.VOCAB_SIZE - 1
FULL = {
  "local_cost": "reverse_kl",
  "cost": "kl",
  "future_weight": 4.0,
  "discount": 0.9,
  "baseline": "leave_one_out",
  "terminal_neutral": True,
}


@pytest.fixture(scope="module")
def network():
  return networks.network(seed=3, num_layers=1)


@pytest.fixture(scope="module")
def teacher(network):
  return networks.random_params(network.params, seed=4)


@pytest.fixture(scope="module")
def batch():
  """Eight episodes: with several turns, with one, and one that a tool ends."""
  whole = networks.random_batch(seed=3, vocab_size=TOOL)
  own = np.array(whole.completion_mask)
  for row, columns in ((0, [1, 2]), (2, [1]), (4, [2]), (5, [1, 3]), (7, [2])):
    own[row, columns] = 0
  is_tool = (own == 0) & (np.asarray(whole.completion_mask) == 1)
  ids = np.where(is_tool, TOOL, whole.completion_ids)
  old = np.where(is_tool, 0.0, whole.old_log_probs)
  return whole.replace(
    completion_ids=jnp.asarray(ids, jnp.int32),
    old_log_probs=jnp.asarray(old, jnp.float32),
    student_mask=jnp.asarray(own),
    rewards=jnp.asarray([1, 0, 0, 1, 0, 0, 0.5, 0.25], jnp.float32),
  )


@functools.cache
def gradients_fn(graphdef, objective, teacher=FROZEN, **sizes):
  made = build_step.gradients(
    objective,
    teacher,
    graphdef=graphdef,
    group_size=GROUP_SIZE,
    num_sequences=8,
    **sizes,
  )
  return jax.jit(made)


def gradients_of(network, objective, teacher, batch, **sizes):
  made = gradients_fn(network.graphdef, objective, **sizes)
  return made(network.params, teacher, batch, jax.random.key(0))


@functools.partial(jax.jit, static_argnames="graphdef")
def logits(params, ids, mask, batch, *, graphdef):
  """All of them, from all tokens that are there. `[B, T, V]`."""
  hidden = decoder.hidden_states(
    graphdef,
    params,
    jnp.concatenate([ids, batch.completion_ids], axis=1),
    jnp.concatenate([mask, batch.completion_mask], axis=1),
  )
  return hidden[:, ids.shape[1] - 1 : -1] @ layers.unembedding(params)


def cut_out(logits, batch):
  """Logits, ids and mask of the student's tokens alone, moved together."""
  order = np.argsort(1 - np.asarray(batch.student_mask), axis=1, kind="stable")
  return (
    jnp.take_along_axis(logits, jnp.asarray(order)[..., None], axis=1),
    jnp.take_along_axis(batch.completion_ids, jnp.asarray(order), axis=1),
    jnp.take_along_axis(batch.student_mask, jnp.asarray(order), axis=1),
  )


def chosen(logits, ids):
  table = jax.nn.log_softmax(logits)
  return jnp.take_along_axis(table, ids[..., None], -1)[..., 0]


def from_cut_logits(kind, student, expert, batch):
  """The objective of completions in which no tool has ever written."""
  student, ids, mask = cut_out(student, batch)
  fed = (student, cut_out(expert, batch)[0], ids, mask)
  shared = {"sample_mask": batch.sample_mask}
  match kind:
    case "distil":
      # No baseline by column: the others' columns move when a hole is cut.
      settings = {**FULL, "baseline": None}
      return references.distil(*fed, **settings, **shared).value
    case "sdpo":
      return references.sdpo(*fed, alpha=0.5, top_k=6, **shared).value
    case "minillm":
      return references.minillm(
        *fed, aggregation="sequence_mean", **shared
      ).value
    case "grpo":
      own = chosen(student, ids)
      return references.grpo(
        own,
        jax.lax.stop_gradient(own),
        batch.rewards,
        mask,
        group_size=GROUP_SIZE,
      ).value
    case "sft":
      own = jnp.where(mask == 1, chosen(student, ids), 0.0)
      return -jnp.sum(own * batch.sample_mask[:, None]) / jnp.sum(
        mask * batch.sample_mask[:, None]
      )


KINDS = {
  "distil": config.DistilConfig(
    **{**networks.PUBLISHED, **FULL, "baseline": None, "chunk_size": 2}
  ),
  "sdpo": config.SDPOConfig(top_k=6),
  "minillm": config.MiniLLMConfig(aggregation="sequence_mean"),
  "grpo": config.GRPOConfig(),
  "sft": config.SFTConfig(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_learns_as_if_tools_were_cut_out_of_what_was_chosen(
  network, teacher, batch, kind
):
  """In micro-batches; the tools' tokens stay in what every token looks at."""
  expert = logits(
    teacher,
    batch.teacher_prompt_ids,
    batch.teacher_prompt_mask,
    batch,
    graphdef=network.graphdef,
  )

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    student = logits(
      params,
      batch.prompt_ids,
      batch.prompt_mask,
      batch,
      graphdef=network.graphdef,
    )
    return from_cut_logits(kind, student, expert, batch)

  value, expected = loss(network.params)
  found, found_value, metrics = gradients_of(
    network, KINDS[kind], teacher, batch, micro_batch_size=2
  )
  np.testing.assert_allclose(found_value, value, rtol=1e-5)
  assert_close(found, expected)
  # It reads what the tools wrote: by that alone has their token a gradient.
  assert jnp.abs(found["embedding"][TOOL]).max() > 1e-4
  if kind != "sft":
    learned = batch.student_mask
    if kind != "grpo":
      learned = learned * batch.sample_mask[:, None]
    own = chosen(
      logits(
        network.params,
        batch.prompt_ids,
        batch.prompt_mask,
        batch,
        graphdef=network.graphdef,
      ),
      batch.completion_ids,
    )
    distances = np.abs(own - batch.old_log_probs)[np.asarray(learned) == 1]
    np.testing.assert_allclose(
      metrics["mismatch/mean"], distances.mean(), rtol=1e-4
    )


def everything(**changed):
  """All of what may couple tokens or sequences."""
  return config.DistilConfig(
    **{**networks.PUBLISHED, **FULL, "reward_weight": 1.0, **changed}
  )


def in_even_columns(batch):
  """The same batch with padding, so that an axis can cut time in two."""
  longer = {
    name: jnp.pad(getattr(batch, name), ((0, 0), (0, 1)))
    for name in (
      "completion_ids",
      "completion_mask",
      "student_mask",
      "old_log_probs",
    )
  }
  for name in ("teacher_prompt_ids", "teacher_prompt_mask"):
    longer[name] = jnp.pad(getattr(batch, name), ((0, 0), (1, 0)))
  return batch.replace(**longer)


def test_how_a_batch_is_cut_changes_nothing(network, teacher, batch):
  """Into slices, that split groups or not, and over time and parameters."""
  objective = everything(chunk_size=2, failure_weighted=True)
  expected = gradients_of(network, objective, teacher, batch)
  found = gradients_of(network, objective, teacher, batch, micro_batch_size=1)
  assert_close(found, expected)
  mesh = sharding.make_mesh(fsdp=2, context=2, devices=jax.devices()[:4])
  with jax.set_mesh(mesh):
    places = decoder.shardings(mesh, network.params)
    placed = dataclasses.replace(
      network, params=jax.device_put(network.params, places)
    )
    found = gradients_of(
      placed,
      objective,
      jax.device_put(teacher, places),
      sharding.put_batch(mesh, in_even_columns(batch)),
    )
  assert_close(found, expected)


def test_what_stands_beside_a_tools_token_changes_nothing(
  network, teacher, batch
):
  """But the token itself does, and only for what comes after it."""
  objective = everything(chunk_size=2)
  expected = gradients_of(network, objective, teacher, batch)
  is_tool = (batch.student_mask == 0) & (batch.completion_mask == 1)
  assert int(is_tool.sum()) == 7
  dirty = networks.with_garbage(batch, seed=8)
  dirty = dirty.replace(
    old_log_probs=jnp.where(is_tool, jnp.nan, dirty.old_log_probs)
  )
  found = gradients_of(network, objective, teacher, dirty)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  for row, is_read in ((0, True), (7, False)):
    other = jnp.where(is_tool[row], 1, batch.completion_ids[row])
    moved = batch.replace(
      completion_ids=batch.completion_ids.at[row].set(other)
    )
    found, *_ = gradients_of(network, objective, teacher, moved)
    gap = distance(found, expected[0])
    assert gap > 1e-4 if is_read else gap == 0.0


def test_off_policy_ratios_are_of_the_students_tokens(network, teacher, batch):
  """A second update on the same batch reads old_log_probs."""
  optimizer = optax.sgd(0.3)
  step = jax.jit(
    build_step.train_step(
      everything(chunk_size=2),
      FROZEN,
      graphdef=network.graphdef,
      optimizer=optimizer,
      group_size=GROUP_SIZE,
      num_sequences=8,
      mini_batch_size=4,
    )
  )
  state = train_state.init_state(
    network.params, optimizer=optimizer, keeps_teacher=False, seed=0
  ).replace(teacher_params=teacher)
  expected = step(state, batch)
  old = jnp.where(batch.student_mask == 0, jnp.nan, batch.old_log_probs)
  found = step(state, batch.replace(old_log_probs=old))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert np.isfinite(expected[1]["importance"])
  assert distance(expected[0].params, network.params) > 1e-3


def test_without_tools_the_mask_is_that_of_the_completion(
  network, teacher, batch
):
  objective = everything(chunk_size=2)
  plain = batch.replace(student_mask=None)
  found = gradients_of(network, objective, teacher, plain)
  same = gradients_of(
    network,
    objective,
    teacher,
    batch.replace(student_mask=batch.completion_mask),
  )
  jax.tree.map(np.testing.assert_array_equal, found, same)
  masked = gradients_of(network, objective, teacher, batch)
  assert distance(masked[0], found[0]) > 1e-4


@pytest.mark.parametrize("access", ["samples", "top_k"])
def test_an_expert_that_gives_lists_is_not_heard_on_tools(
  network, teacher, batch, access
):
  asked = config.TeacherConfig(
    parameters="frozen", access=access, num_samples=3, top_k=3
  )
  objective = everything(local_cost=None, cost="cross_entropy")
  made = gradients_fn(network.graphdef, objective, teacher=asked)
  rng = np.random.default_rng(5)
  ids = rng.integers(0, TOOL, (8, 5, 3)).astype(np.int32)
  log_probs = -rng.uniform(0.5, 3.0, ids.shape).astype(np.float32)
  is_tool = np.asarray(batch.student_mask)[..., None] == 0
  found = [
    made(
      network.params,
      teacher,
      batch.replace(
        teacher_candidate_ids=jnp.where(is_tool, one, ids),
        teacher_candidate_log_probs=jnp.where(is_tool, other, log_probs),
      ),
      jax.random.key(0),
    )
    for one, other in ((0, 0.0), (TOOL, jnp.nan))
  ]
  jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize("kind", ["distil", "sdpo", "minillm", "grpo"])
def test_logits_at_tools_tokens_have_no_gradient(batch, kind):
  """Whatever stands there, whatever the baselines are."""
  rng = np.random.default_rng(6)
  shape = (*batch.completion_ids.shape, networks.VOCAB_SIZE)
  student, expert = rng.normal(size=(2, *shape)).astype(np.float32)
  mask = batch.student_mask

  @jax.jit
  @jax.value_and_grad
  def loss(student, expert, ids):
    fed = (student, expert, ids, mask)
    match kind:
      case "distil":
        return references.distil(*fed, **FULL, group_size=GROUP_SIZE).value
      case "sdpo":
        return references.sdpo(*fed, alpha=0.5).value
      case "minillm":
        return references.minillm(*fed).value
      case _:
        own = chosen(student, ids)
        return references.grpo(
          own, own, batch.rewards, mask, group_size=GROUP_SIZE
        ).value

  value, gradient = loss(student, expert, batch.completion_ids)
  holes = np.asarray(mask)[..., None] == 0
  np.testing.assert_array_equal(np.where(holes, gradient, 0.0), 0.0)
  learned = np.abs(gradient).max(axis=-1)[np.asarray(mask) == 1]
  assert np.mean(learned > 0) > 0.9
  garbage = np.where(holes, np.float32(1e4), student)
  found = loss(
    garbage,
    np.where(holes, np.float32(-1e4), expert),
    jnp.where(mask == 0, 5, batch.completion_ids),
  )
  jax.tree.map(np.testing.assert_array_equal, found, (value, gradient))
