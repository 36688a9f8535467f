"""The order of problems, their batches, and what mixes data sets."""

import collections
import itertools

import numpy as np
import pytest

from distil_jax.data import problem_stream
from distil_jax.data.data_files import DataError


def make_batches(items, *, batch_size, seed, num_epochs, start=0, **processes):
  """The stream of one data set, from a global batch on."""
  size = batch_size * processes.get("process_count", 1)
  return problem_stream.ProblemStream(
    problem_stream.shuffled(items, seed=seed, num_epochs=num_epochs),
    batch_size=batch_size,
    position=start * size,
    **processes,
  )


def take(iterator, count):
  return list(itertools.islice(iterator, count))


def test_an_epoch_holds_every_item_once_and_epochs_differ_in_order():
  items = [f"item {i}" for i in range(60)]
  iterator = make_batches(items, batch_size=6, seed=1, num_epochs=3)
  dealt = list(iterator)
  assert [len(batch) for batch in dealt] == [6] * 30
  epochs = np.reshape(dealt, (3, 60)).tolist()
  assert all(sorted(epoch) == sorted(items) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
  assert epochs[0] != items


def test_the_seed_decides_the_order():
  def first(seed):
    return next(
      make_batches(range(60), batch_size=60, seed=seed, num_epochs=None)
    )

  assert first(5) == first(5)
  assert first(5) != first(6)


@pytest.mark.parametrize("num_epochs", [2, None])
@pytest.mark.parametrize("process_count", [1, 2, 3])
def test_processes_share_global_batches(process_count, num_epochs):
  kwargs = {"seed": 3, "num_epochs": num_epochs}
  alone = make_batches(range(25), batch_size=6, **kwargs)
  shares = [
    make_batches(
      range(25),
      batch_size=6 // process_count,
      process_index=index,
      process_count=process_count,
      **kwargs,
    )
    for index in range(process_count)
  ]
  dealt = [take(share, 8) for share in shares]
  for number, whole in enumerate(take(alone, 8)):
    parts = [item for share in dealt for item in share[number]]
    assert parts == whole


def test_processes_have_equally_many_batches_and_lose_only_the_rest():
  shares = [
    list(
      make_batches(
        range(7),
        batch_size=2,
        seed=0,
        num_epochs=1,
        process_index=index,
        process_count=2,
      )
    )
    for index in range(2)
  ]
  # 4 and 3 items; the second batch of the first process would have no partner.
  assert [len(share) for share in shares] == [1, 1]
  seen = collections.Counter(np.ravel(shares).tolist())
  assert len(seen) == 4
  assert set(seen.values()) == {1}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_set_smaller_than_a_batch_fills_it_over_epochs(size):
  for num_epochs in (None, 12):
    iterator = make_batches(
      range(size), batch_size=4, seed=0, num_epochs=num_epochs
    )
    dealt = take(iterator, size * 3)
    assert [len(batch) for batch in dealt] == [4] * size * 3
    counts = collections.Counter(np.ravel(dealt).tolist())
    assert counts == dict.fromkeys(range(size), 12)


def test_too_few_items_are_an_error():
  with pytest.raises(DataError, match="6 items in all epochs"):
    make_batches(range(3), batch_size=4, seed=0, num_epochs=2, process_count=2)
  with pytest.raises(DataError, match="no items"):
    make_batches([], batch_size=1, seed=0, num_epochs=None)


def test_arguments_out_of_range_are_errors():
  for wrong in (
    {"batch_size": 0},
    {"num_epochs": 0},
    {"process_index": 1},
    {"process_index": -1},
    {"seed": -1},
    {"start": -1},
  ):
    kwargs = {"batch_size": 1, "seed": 0, "num_epochs": None, **wrong}
    with pytest.raises(ValueError, match=r"\d"):
      make_batches([1], **kwargs)


@pytest.mark.parametrize("num_epochs", [3, None])
def test_any_number_of_processes_goes_on_where_another_stopped(num_epochs):
  def dealt(count, start, process_count):
    shares = [
      take(
        make_batches(
          range(25),
          batch_size=12 // process_count,
          seed=2,
          num_epochs=num_epochs,
          start=start,
          process_index=index,
          process_count=process_count,
        ),
        count,
      )
      for index in range(process_count)
    ]
    whole = zip(*shares, strict=True)
    return [list(itertools.chain(*parts)) for parts in whole]

  whole = dealt(6, 0, 1)
  assert len(whole) == 6
  assert dealt(2, 0, 2) + dealt(3, 2, 3) + dealt(1, 5, 1) == whole
  assert dealt(2, 6, 2) == ([] if num_epochs else dealt(8, 0, 1)[6:])


def test_items_are_passed_on_themselves():
  items = [object() for _ in range(3)]
  (batch,) = make_batches(items, batch_size=3, seed=0, num_epochs=1)
  assert isinstance(batch, list)
  assert {id(item) for item in batch} == {id(item) for item in items}


def mixture(num_epochs=None):
  sequences = [
    problem_stream.shuffled(
      [(name, i) for i in range(size)], seed=4, num_epochs=num_epochs
    )
    for name, size in (("a", 10), ("b", 7))
  ]
  return problem_stream.mixed(sequences, [3, 1])


def test_data_sets_alternate_in_proportion_and_each_in_its_own_order():
  stream = problem_stream.ProblemStream(mixture(), batch_size=8)
  batches = take(stream, 7)
  for batch in batches:
    assert [name for name, _ in batch].count("b") == 2
  dealt = list(itertools.chain(*batches))
  for name, size in (("a", 10), ("b", 7)):
    alone = make_batches(
      [(name, i) for i in range(size)], batch_size=1, seed=4, num_epochs=None
    )
    mine = [item for item in dealt if item[0] == name]
    assert mine == list(itertools.chain(*take(alone, len(mine))))


def test_a_mixture_ends_where_its_first_set_does():
  stream = problem_stream.ProblemStream(mixture(num_epochs=1), batch_size=1)
  dealt = [item for batch in stream for item in batch]
  # Of 13, 10 are the whole of `a` and 3 its share of `b`.
  assert len(dealt) == len(set(dealt)) == 13


@pytest.mark.parametrize("process_count", [1, 2])
def test_what_is_drawn_between_batches_is_left_out_of_the_next(process_count):
  streams = [
    problem_stream.ProblemStream(
      mixture(),
      batch_size=4 // process_count,
      process_index=index,
      process_count=process_count,
    )
    for index in range(process_count)
  ]
  found, counts = [], [3, 0][:process_count]
  for stream in streams:
    found.append(next(stream))
  for stream in streams:
    found.append(stream.draw(counts))
  for stream in streams:
    assert stream.position == 0  # nothing has been learned yet
    stream.keep()
    assert stream.position == 7
    found.append(next(stream))
  flat = list(itertools.chain(*found))
  assert flat == [mixture()[i] for i in range(11)]
  assert all(stream.position == 7 for stream in streams)


def test_nothing_is_drawn_where_too_little_is_left():
  items = problem_stream.shuffled(range(5), seed=0, num_epochs=1)
  stream = problem_stream.ProblemStream(items, batch_size=4)
  next(stream)
  assert stream.draw([2]) is None
  assert len(stream.draw([1])) == 1
