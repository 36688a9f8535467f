"""Sequences are sorted by length into micro-batches of few sizes."""

import jax
import numpy as np
import pytest

from distil_jax.data import length_buckets
from distil_jax.training import micro_batches
from distil_jax.training.micro_batches import MicroBatch, Sizes
from tests import networks

LIMIT, PROMPT = 4096, 128


def planned(lengths, sizes, *, prompt_width=PROMPT, limit=LIMIT):
  order = np.argsort(-lengths, kind="stable")
  return micro_batches.plan(
    order, lengths[order], sizes, prompt_width=prompt_width, limit=limit
  )


def long_tailed(rng, count):
  """Log-normal lengths whose mean is a quarter of the limit."""
  lengths = rng.lognormal(np.log(LIMIT / 4) - 0.5, 1.0, count)
  return np.clip(lengths, 1, LIMIT).astype(int)


def test_little_is_padding_and_few_sizes_are_compiled():
  rng, sizes = np.random.default_rng(0), Sizes(4 * (LIMIT + PROMPT))
  shapes = set()
  for _ in range(20):
    lengths = long_tailed(rng, 256)
    micros = planned(lengths, sizes)
    computed = sum(m.num_rows * (PROMPT + m.width) for m in micros)
    tokens = lengths.sum() + 256 * PROMPT
    assert 1 - tokens / computed <= 0.1
    shapes |= {(m.num_rows, m.width) for m in micros}
  assert len(shapes) <= 3 * length_buckets.num_sizes(LIMIT)


@pytest.mark.parametrize("num_shards", [1, 4])
def test_every_row_has_its_place_within_the_budget(num_shards):
  lengths = long_tailed(np.random.default_rng(1), 64)
  sizes = Sizes(40_000, num_shards, multiple=8)
  micros = planned(lengths, sizes)
  rows = np.concatenate([m.rows for m in micros])
  assert sorted(rows) == list(range(64))
  for m in micros:
    assert len(m.rows) <= m.num_rows
    assert m.num_rows % num_shards == 0
    assert m.width >= lengths[m.rows].max()
    assert m.width % 8 == 0
    assert m.num_rows * (m.width + PROMPT) <= 40_000
  # Only the last has rows that are filled.
  assert all(len(m.rows) == m.num_rows for m in micros[:-1])


def test_a_budget_below_one_row_takes_one_for_each_part():
  assert Sizes(10, num_shards=4).row_counts(1000) == [4]


def test_processes_share_the_budget():
  alone, of_two = Sizes(960, 4), Sizes(960, 2, num_processes=2)
  assert alone.row_counts(60) == [16, 8, 4]
  assert of_two.row_counts(60) == [8, 4, 2]


def test_the_filling_counts_nowhere():
  batch = jax.tree.map(np.asarray, networks.random_batch(seed=3))
  batch = batch.replace(loss_weights=np.ones(batch.completion_ids.shape))
  micro = MicroBatch(np.array([5, 2]), num_rows=4, width=3)
  found = micro_batches.take(batch, micro)
  for name in ("prompt_mask", "teacher_prompt_mask", "completion_mask"):
    mask = getattr(found, name)
    assert mask[:2].any(axis=1).all()
    assert not mask[2:].any()
  assert not found.sample_mask[2:].any()
  assert not found.loss_weights[2:].any()
  np.testing.assert_array_equal(
    found.completion_ids[:2], batch.completion_ids[[5, 2], :3]
  )


def test_what_is_found_goes_back_to_its_rows():
  micros = [
    MicroBatch(np.array([2, 0]), num_rows=2, width=3),
    MicroBatch(np.array([1]), num_rows=2, width=2),
  ]
  pieces = [np.array([[1, 2, 3], [4, 5, 6]]), np.array([[7, 8], [9, 9]])]
  found = micro_batches.put_back(pieces, micros, 4)
  assert found.tolist() == [[4, 5, 6, 0], [7, 8, 0, 0], [1, 2, 3, 0]]
