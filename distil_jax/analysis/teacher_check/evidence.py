"""Runs a run's own programs on a batch, and plain ones beside them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.analysis.teacher_check import expected, movement, token_numbers
from distil_jax.analysis.teacher_check.records import (
  Evidence,
  Gathered,
  Movement,
  Numbers,
  PaddingTrial,
  Run,
)
from distil_jax.models import decoder, layers, sharding
from distil_jax.objectives.base import Objective, with_lists
from distil_jax.training import low_precision, token_values
from distil_jax.training.setup import train_steps
from distil_jax.types import TrainBatch

# Rows of a plain pass are as long as the longest, rounded up to this, so that
# devices can share them.
_LENGTH_MULTIPLE = 64
_GARBAGE_SEED = 7
_of_batch = jax.jit(token_values.of_batch, static_argnames="objective")


@dataclasses.dataclass(frozen=True)
class Networks:
  """Holds what plain passes run.

  Attributes:
    student: graph definition and parameters.
    teachers: for each part of a teacher's logits its share, graph definition
      and parameters; of several teachers in the order of `teacher_index`.
    is_several: whether a batch says which teacher a sequence has.
  """

  student: tuple[Any, Any]
  teachers: Sequence[Sequence[tuple[float, Any, Any]]]
  is_several: bool = False

  @property
  def params(self) -> tuple[Any, Any]:
    """Parameters of student and teacher, as an objective takes them."""
    found = tuple(parts[0][2] for parts in self.teachers)
    return self.student[1], found if self.is_several else found[0]


def collect(run: Run, gathered: Gathered) -> Evidence:
  """Runs everything that the checks need.

  Args:
    run: from `gather.load`; its state is kept.
    gathered: from `gather.gather`.
  """
  batch = put_batch(run, gathered)
  metrics, padding, teacher = try_step(run, gathered, batch)
  return Evidence(
    tokens=dense_tokens(networks(run), gathered, batch),
    signal=objective_signal(run, batch),
    metrics=metrics,
    padding=padding,
    teacher=teacher,
  )


def put_batch(run: Run, gathered: Gathered) -> TrainBatch:
  """Returns the batch on the devices, with lists if the teacher gives lists."""
  batch = sharding.put_batch(run.trainer.mesh, gathered.batch)
  ask_fn = _objective(run.trainer).ask_fn
  if ask_fn is None:
    return batch
  seed, num_rows = gathered.config.train.seed, len(batch.completion_ids)
  keys = jax.random.split(jax.random.key(seed), num_rows)
  lists = jax.jit(ask_fn)(*networks(run).params, batch, keys)
  return with_lists(batch, lists)


def objective_signal(run: Run, batch: TrainBatch) -> Numbers:
  """Returns what the run's objective makes of the batch. `[B, T]` each."""
  return signal_of(networks(run), batch, _objective(run.trainer))


def signal_of(
  read: Networks, batch: TrainBatch, objective: Objective
) -> Numbers:
  """Returns what an objective makes of the batch. `[B, T]` each."""
  found = _of_batch(*read.params, batch, objective=objective)
  return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def try_step(
  run: Run, gathered: Gathered, batch: TrainBatch
) -> tuple[dict[str, float], PaddingTrial, Movement | None]:
  """Makes the run's step on the batch, and again with small changes.

  Returns:
    The step's metrics, what garbage at padding changed, and how the teacher
    moved.
  """
  after, metrics = run.step_fn(_copied(run.state), batch)
  padding = _padding_trial(run, batch, gathered, after, metrics)
  del after
  teacher = _moved_teacher(run, batch)
  return {name: float(x) for name, x in metrics.items()}, padding, teacher


def _objective(trainer: Any) -> Objective:
  """Returns the objective inside the run's training step."""
  other = trainer.teacher_model
  step: Any = train_steps.build_train_step(
    trainer.config, trainer.policy, trainer.optimizer, other and other.network
  )
  # Taken from the step itself, so that what is checked is what is trained.
  return step.keywords["objective"]


def networks(run: Run) -> Networks:
  """Returns the networks of student and teacher.

  Nothing else here knows where the teacher's parameters come from.
  """
  trainer, state = run.trainer, run.state
  graphdef, other = trainer.policy.graphdef, trainer.teacher_model
  student = (graphdef, state.student_params)
  own = student[1]
  if state.teacher_params is not None:
    own = state.whole(state.teacher_params)
  section, parts = trainer.config.teacher, [(1.0, graphdef, own)]
  if section.parameters == "trust_region":
    rate = section.trust_region_rate
    parts = [(1 - rate, graphdef, own), (rate, *student)]
  if other is None:
    return Networks(student, [parts])
  # The step was bound to the weights when they were read.
  params, network = run.step_fn.keywords["teacher_params"], other.network
  is_several = isinstance(network, tuple)
  networks, params = (
    (network, params) if is_several else ((network,), (params,))
  )
  return Networks(
    student,
    [
      parts if one is None else [(1.0, one.graphdef, its_params)]
      for one, its_params in zip(networks, params, strict=True)
    ],
    is_several,
  )


def dense_tokens(
  read: Networks, gathered: Gathered, batch: TrainBatch
) -> Numbers:
  """Returns numbers of all tokens from plain passes over whole sequences.

  Each sequence is its prompt and its completion in one row, without padding in
  front, without shared prefixes, and with all logits.
  """
  config = gathered.config
  count = len(gathered.batch.completion_ids)
  length = gathered.batch.completion_ids.shape[1]
  own_rows = [
    (gathered.student_prompt(i), gathered.completion(i)) for i in range(count)
  ]
  teacher_rows = [
    [
      (gathered.teacher_prompt(i, turn), gathered.completion(i))
      for i in range(count)
    ]
    for turn in range(gathered.num_turns)
  ]
  every_row = (*own_rows, *(row for rows in teacher_rows for row in rows))
  width = max(len(p) + len(c) for p, c in every_row)
  width += -width % _LENGTH_MULTIPLE
  at_once = config.optimizer.micro_batch_size or count
  run = functools.partial(_hidden_rows, width=width, at_once=at_once)
  own_hidden = run(*read.student, own_rows)
  teachers = [
    [
      (
        share,
        params,
        _states_of_turns(
          [
            _completion_states(run(graphdef, params, rows), rows, length)
            for rows in teacher_rows
          ],
          gathered,
        ),
      )
      for share, graphdef, params in parts
    ]
    for parts in read.teachers
  ]
  formulas = (
    expected.local_formula(config.objective),
    expected.carried_formula(config.objective),
  )
  found = []
  for row in range(count):
    stretches = []
    ids = np.asarray(own_rows[row][1])
    begin = len(own_rows[row][0])
    parts = teachers[
      gathered.batch.teacher_index[row] if read.is_several else 0
    ]
    for part in token_numbers.stretches(len(ids), gathered.vocab_size):
      own = _logits(read.student[1], own_hidden[row], begin, part, 0)
      theirs = np.sum(
        [
          # The state before the first token is in column 1 of these.
          share * _logits(params, states[row], 2, part, 1)
          for share, params, states in parts
        ],
        axis=0,
      )
      lists = _lists(batch, row, part)
      stretches.append(
        token_numbers.of_tokens(
          own,
          theirs,
          ids[part],
          *formulas,
          lists,
          config.teacher.access,
          gathered.num_tokens,
        )
      )
    found.append(token_numbers.joined(stretches, length))
  return {name: np.stack([x[name] for x in found]) for name in found[0]}


@functools.partial(jax.jit, static_argnames="graphdef")
def _hidden_states(graphdef, params, ids, mask):
  return decoder.hidden_states(graphdef, params, ids, mask)


def _hidden_rows(graphdef, params, rows, *, width: int, at_once: int):
  """Returns the hidden states of whole sequences, on the host."""
  found = []
  for start in range(0, len(rows), at_once):
    ids = np.zeros((at_once, width), np.int32)
    mask = np.zeros((at_once, width), np.int32)
    for i, (prompt, completion) in enumerate(rows[start : start + at_once]):
      ids[i, : len(prompt) + len(completion)] = prompt + completion
      mask[i, : len(prompt) + len(completion)] = 1
    hidden = _hidden_states(graphdef, params, ids, mask)
    found.append(np.asarray(hidden.astype(jnp.float32)))
  return np.concatenate(found)


def _completion_states(hidden, rows, length: int) -> np.ndarray:
  """Returns the states around completions, for all rows in the same columns.

  Shape `[B, T + 2, D]`: the state that predicts token t is in column t + 1.
  """
  found = np.zeros((len(rows), length + 2, hidden.shape[-1]), hidden.dtype)
  for row, (prompt, completion) in enumerate(rows):
    # A prompt of one token has no state before the one that predicts.
    first = max(len(prompt) - 2, 0)
    states = hidden[row, first : len(prompt) + len(completion)]
    start = first - (len(prompt) - 2)
    found[row, start : start + len(states)] = states[: length + 2 - start]
    if start:
      found[row, 0] = found[row, 1]
  return found


def _states_of_turns(by_turn, gathered: Gathered) -> np.ndarray:
  """Returns each token's state from the pass whose prompt is its turn's."""
  if gathered.batch.turn_numbers is None:
    return by_turn[0]
  numbers = np.maximum(np.asarray(gathered.batch.turn_numbers), 0)
  found = by_turn[0].copy()
  for turn, of_turn in enumerate(by_turn):
    row, token = np.nonzero(numbers == turn)
    found[row, token + 1] = of_turn[row, token + 1]
  return found


def _logits(params, hidden, begin: int, part: slice, more: int) -> np.ndarray:
  """Returns logits of the states before a stretch, and of some around it."""
  # The state in a column predicts the token in the next one.
  first = begin - 1
  columns = np.arange(part.start - more, part.stop + more) + first
  states = jnp.asarray(hidden[np.maximum(columns, 0)])
  weights = layers.unembedding(params).astype(jnp.float32)
  return np.asarray(
    jnp.matmul(states, weights, precision=jax.lax.Precision.HIGHEST)
  )


def _lists(batch: TrainBatch, row: int, part: slice):
  if batch.teacher_candidate_ids is None:
    return None
  return (
    np.asarray(batch.teacher_candidate_ids[row])[part],
    np.asarray(batch.teacher_candidate_log_probs[row])[part],
  )


def _padding_trial(run: Run, batch, gathered: Gathered, after, metrics):
  """Returns what a step learns from the same batch with garbage around it."""
  garbled, count = movement.with_garbage(
    jax.tree.map(np.asarray, batch), gathered.vocab_size, _GARBAGE_SEED
  )
  garbled = jax.tree.map(
    lambda x, like: jax.device_put(np.asarray(x), like.sharding), garbled, batch
  )
  other_after, other_metrics = run.step_fn(_copied(run.state), garbled)
  names = ("loss", "cost", "gradient_norm", "future_cost")
  return PaddingTrial(
    num_positions=count,
    metrics={
      name: (float(metrics[name]), float(other_metrics[name]))
      for name in names
      if name in metrics
    },
    # Moments are sums of gradients, so that they show what a small learning
    # rate hides.
    distance=movement.relative_distance(
      (after.params, after.opt_state),
      (other_after.params, other_after.opt_state),
    ),
  )


def _moved_teacher(run: Run, batch: TrainBatch) -> Movement | None:
  """Returns how a step moves the teacher from a place beside its own."""
  state, section = run.state, run.trainer.config.teacher
  if state.teacher_params is None:
    return None
  # At the start student and teacher are one, and a small learning rate would
  # hide how the teacher follows. From elsewhere it has a way to go.
  displaced = dataclasses.replace(
    state, teacher_params=movement.displaced(state.teacher_params)
  )
  before = jax.tree.map(np.asarray, displaced.teacher_params)
  after, _ = run.step_fn(_copied(displaced), batch)
  target = low_precision.full_params(after.params, after.opt_state)
  if state.guard is not None and bool(state.guard.is_holding):
    target = before if state.initial_params is None else state.initial_params
  is_moving = section.parameters == "ema"
  return movement.of_teacher(
    before,
    target,
    after.teacher_params,
    section.ema_rate if is_moving else 0.0,
  )


def _copied(state: Any) -> Any:
  # The step donates its state, and the state serves more than one.
  return jax.tree.map(jnp.copy, state)
