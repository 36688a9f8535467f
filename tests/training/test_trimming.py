"""What is padding in all rows of a batch is cut off and changes nothing."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from distil_jax import config
from distil_jax.data import length_buckets
from distil_jax.models import sharding
from distil_jax.training import build_step, host_step, train_state, trimming
from tests import networks
from tests.networks import assert_close, distance

SGD = optax.sgd(0.3)
GARBAGE = 10**6
# Columns of the batches' longest rows.
LENGTHS = {"prompt": 4, "teacher_prompt": 7, "completion": 5}


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
  monkeypatch.setattr(length_buckets, "SMALLEST", 1)


def batch_of(seed=3):
  """Lists, masks of tools and turns too, so that every field is there."""
  batch = jax.tree.map(np.asarray, networks.random_batch(seed))
  rows, length = batch.completion_ids.shape
  lists = np.ones((rows, length, 2), np.int32)
  return dataclasses.replace(
    batch,
    teacher_candidate_ids=lists,
    teacher_candidate_log_probs=-lists.astype(np.float32),
    teacher_log_probs=-np.ones((rows, length), np.float32),
    teacher_weights=np.ones((rows, length), np.float32),
    student_mask=batch.completion_mask,
    turn_numbers=np.zeros((rows, length), np.int32),
    later_prompt_ids=np.stack([batch.teacher_prompt_ids] * 2, axis=1),
    later_prompt_mask=np.stack([batch.teacher_prompt_mask] * 2, axis=1),
  )


def loosened(batch, columns=9):
  """The batch under looser limits, with garbage at the new padding."""

  def pad(field, x):
    if x is None or x.ndim < 2:
      return x
    widths = [(0, 0)] * x.ndim
    if field.startswith(
      ("prompt", "teacher_prompt", "teacher_prefix", "later_prompt")
    ):
      widths[-1] = (columns, 0)
    else:
      widths[1] = (0, columns)
    value = 0 if field.endswith("mask") else x.dtype.type(GARBAGE)
    return np.pad(x, widths, constant_values=value)

  fields = [field.name for field in dataclasses.fields(batch)]
  return batch.replace(**{f: pad(f, getattr(batch, f)) for f in fields})


def shapes(batch):
  return jax.tree.map(np.shape, batch)


def test_all_that_a_looser_limit_adds_is_cut_off():
  batch = batch_of()
  tight = trimming.Trimmer()(batch)
  assert tight.completion_ids.shape == (8, LENGTHS["completion"])
  assert tight.prompt_ids.shape == (8, LENGTHS["prompt"])
  assert tight.teacher_prompt_ids.shape == (8, LENGTHS["teacher_prompt"])
  loose = trimming.Trimmer()(loosened(batch))
  jax.tree.map(np.testing.assert_array_equal, loose, tight)
  # No token was cut off either.
  for name in ("prompt", "teacher_prompt", "completion"):
    mask = f"{name}_mask"
    assert getattr(tight, mask).sum() == getattr(batch, mask).sum()


def test_widths_of_prompts_only_grow():
  batch = loosened(batch_of())
  trim = trimming.Trimmer()
  widest = shapes(trim(batch))
  expected = {"prompt": 4, "teacher_prompt": 7, "later_prompt": 7}
  assert trim.widths == expected
  short = batch.replace(
    **{
      name: np.where(np.arange(x.shape[1]) < x.shape[1] - 1, 0, x)
      for name in ("prompt_mask", "teacher_prompt_mask")
      for x in [getattr(batch, name)]
    }
  )
  assert shapes(trim(short)) == widest
  # A resumed run goes on with what it had.
  assert shapes(trimming.Trimmer(trim.widths)(short)) == widest
  assert trimming.Trimmer()(short).prompt_ids.shape == (8, 1)
  # Another limit than before holds too.
  assert trimming.Trimmer({"prompt": 99})(batch).prompt_ids.shape == (8, 13)


def test_rests_of_prompts_have_a_width_of_their_own():
  batch = loosened(batch_of())
  trim = trimming.Trimmer()
  trim(batch)
  split = batch.replace(
    teacher_prefix_ids=batch.teacher_prompt_ids[::2],
    teacher_prefix_mask=batch.teacher_prompt_mask[::2],
    teacher_prompt_mask=batch.teacher_prompt_mask * 0,
  )
  found = trim(split)
  assert found.teacher_prefix_ids.shape == (4, 7)
  assert found.teacher_prompt_ids.shape == (8, 1)
  assert trim(batch).teacher_prompt_ids.shape == (8, 7)


def test_widths_divide_the_axis_that_cuts_sequences():
  batch = loosened(batch_of())
  with jax.set_mesh(sharding.make_mesh(fsdp=2, context=4)):
    found = trimming.Trimmer()(batch)
  widths = (
    found.prompt_ids.shape[1],
    found.teacher_prompt_ids.shape[1],
    found.completion_ids.shape[1],
  )
  assert widths == (4, 8, 8)


def test_demonstrations_have_no_teacher_s_prompt():
  batch = batch_of()
  bare = host_step.without_teacher_prompts(loosened(batch))
  found = trimming.Trimmer()(bare)
  assert found.teacher_prompt_ids.shape == (8, 0)
  assert found.prompt_ids.shape == (8, 4)


def test_padding_is_a_share_of_what_is_read():
  batch = batch_of()
  tokens = sum(
    getattr(batch, f"{name}_mask").sum()
    for name in ("prompt", "teacher_prompt", "completion", "completion")
  )
  columns = 8 * (4 + 7 + 5 + 5)
  assert host_step.padding_share([batch]) == pytest.approx(1 - tokens / columns)
  student = host_step.without_teacher_prompts(batch)
  own = batch.prompt_mask.sum() + batch.completion_mask.sum()
  both = host_step.padding_share([batch, student])
  assert both == pytest.approx(1 - (tokens + own) / (columns + 8 * (4 + 5)))


def test_a_step_does_not_depend_on_limits():
  network = networks.network(seed=3)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  batch = jax.tree.map(np.asarray, networks.random_batch(seed=3))
  step = build_step.train_step(
    config.DistilConfig(chunk_size=2),
    config.TeacherConfig(parameters="current"),
    graphdef=network.graphdef,
    optimizer=SGD,
    group_size=4,
    num_sequences=8,
  )
  # Not donated, because each state is read again.
  run = host_step.HostStep(
    host_step.whole_batch(jax.jit(step), mesh), reads_teacher_prompts=True
  )
  with jax.set_mesh(mesh):
    state = train_state.init_state(
      network.params, optimizer=SGD, keeps_teacher=False, seed=0
    )
    places = train_state.state_shardings(state, mesh, SGD)
    state = jax.device_put(state, places)
    expected, metrics = jax.jit(step)(
      state, sharding.put_batch(mesh, loosened(batch))
    )
    found, same = run(state, loosened(batch))
  assert distance(found.params, network.params) > 1e-2
  assert_close(found.params, expected.params)
  assert same.pop("update/padding") == host_step.padding_share([batch])
  assert_close(same, metrics)
