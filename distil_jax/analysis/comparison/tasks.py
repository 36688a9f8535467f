"""Families of small problems whose difficulty is known exactly.

A problem is a row of digits. A completion chooses a *route* with its first
token, writes that route's steps, and ends. What the base model can do of each
step is set by soft targets (`bases`), so a family isolates one question: what
happens where the base never succeeds, where an early choice decides, and so on.

Everything is on the device: arrays in, arrays out.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

# The vocabulary: ten digits, four fillers, and
PAD, EOS, ASK, HINT = 10, 11, 12, 13
ROUTES = (14, 15)
FILLERS = (16, 17, 18, 19)
VOCAB_SIZE = 20
# What no token is, in `expected`.
_ANY_FILLER, _ANY_DIGIT, _NOTHING = -1, -2, -3

Step = Literal["code", "fresh", "total", "sum", "filler"]
Feedback = Literal["answer", "traces", "sibling"]


@dataclasses.dataclass(frozen=True)
class Route:
  """One way to answer.

  Attributes:
    steps: what is written after the route's own token.
      code: the digit's image under a fixed code.
      fresh: a digit drawn anew for each problem; only feedback shows it.
      total: the running total of the digits, mod 10.
      sum: the total of all digits at once, mod 10.
      filler: any of four tokens.
    preference: the base model's probability of the route.
    accuracy: its probability of each step's right digit, without feedback.
    num_known: so many digits of the code it knows with probability 0.95.
  """

  steps: tuple[Step, ...]
  preference: float
  accuracy: float
  num_known: int = 0


@dataclasses.dataclass(frozen=True)
class Family:
  """A distribution of problems and what feedback tells about them.

  Attributes:
    question: why the family is there.
    num_digits: length of a problem.
    routes: one or two.
    feedback: what stands in the teacher's prompt. `answer`: the last digit;
      `traces`: the digits of every route; `sibling`: a successful completion
      of the group, and nothing where there is none.
    checks_all: whether every digit counts, or the last one alone.
    sibling_weight: probability with which the teacher takes the sibling's
      route.
    wrong_feedback: share of problems that get another problem's feedback.
  """

  question: str
  num_digits: int
  routes: tuple[Route, ...]
  feedback: Feedback
  checks_all: bool = False
  sibling_weight: float = 0.6
  wrong_feedback: float = 0.0

  @property
  def prompt_length(self) -> int:
    return self.num_digits + 1

  @property
  def completion_length(self) -> int:
    """Route token, steps, end token of the longest route."""
    return max(len(route.steps) for route in self.routes) + 2

  @property
  def hint_length(self) -> int:
    lengths = [len(route.steps) for route in self.routes]
    return {
      "answer": 1,
      "traces": sum(lengths),
      "sibling": self.completion_length,
    }[self.feedback]


@struct.dataclass
class Problems:
  """Problems on the device.

  Attributes:
    digits: what stands in the prompt. Shape `[P, n]`.
    fresh: what nobody can know. Shape `[P, longest route]`.
    index: identity within the run; seeds the samples. Shape `[P]`, uint32.
  """

  digits: jax.Array
  fresh: jax.Array
  index: jax.Array


def make_problems(
  family: Family, key: jax.Array, num_problems: int
) -> Problems:
  """Draws problems."""
  digits_key, fresh_key, index_key = jax.random.split(key, 3)
  longest = max(len(route.steps) for route in family.routes)
  shape = (num_problems, family.num_digits)
  return Problems(
    digits=jax.random.randint(digits_key, shape, 0, 10),
    fresh=jax.random.randint(fresh_key, (num_problems, longest), 0, 10),
    index=jax.random.bits(index_key, (num_problems,)),
  )


def repeat(problems: Problems, group_size: int) -> Problems:
  """Repeats each problem for the samples of its group."""
  return jax.tree.map(lambda x: jnp.repeat(x, group_size, axis=0), problems)


def prompts(problems: Problems) -> jax.Array:
  """The student's prompts: the digits and a question mark. `[P, S]`."""
  ask = jnp.full((problems.digits.shape[0], 1), ASK)
  return jnp.concatenate([problems.digits, ask], axis=1)


def step_digits(
  family: Family, problems: Problems, route: int, before: jax.Array | None
) -> jax.Array:
  """The right digit of each step of a route. Shape `[P, steps]`.

  Args:
    family, problems: whose.
    route: its number.
    before: what has been written before each step, `[P, steps]`; a running
      total goes on from there. None: everything written was right.
  """
  code = jnp.asarray(_code())
  totals = jnp.cumsum(problems.digits, axis=1) % 10
  columns, position = [], 0  # position: of the next digit to be used
  for i, step in enumerate(family.routes[route].steps):
    if step == "code":
      column = code[problems.digits[:, position]]
      position += 1
    elif step == "fresh":
      column = problems.fresh[:, i]
    elif step == "sum":
      column = totals[:, -1]
    elif step == "total":
      column = totals[:, position]
      if before is not None and position:
        written = before[:, i]
        own = (written + problems.digits[:, position]) % 10
        column = jnp.where(written < 10, own, column)
      position += 1
    else:
      column = jnp.zeros_like(problems.digits[:, 0])
    columns.append(column)
  return jnp.stack(columns, axis=1)


def expected(family: Family, problems: Problems, route: int) -> jax.Array:
  """What a right completion has at each place. Shape `[P, T]`.

  Negative entries stand for any filler, any digit, and nothing at all.
  """
  steps = family.routes[route].steps
  tokens = step_digits(family, problems, route, None)
  last = len(steps) - 1
  for i, step in enumerate(steps):
    if step == "filler":
      tokens = tokens.at[:, i].set(_ANY_FILLER)
    elif not family.checks_all and i != last:
      tokens = tokens.at[:, i].set(_ANY_DIGIT)
  num_problems = tokens.shape[0]
  first = jnp.full((num_problems, 1), ROUTES[route])
  end = jnp.full((num_problems, 1), EOS)
  rest = jnp.full(
    (num_problems, family.completion_length - len(steps) - 2), _NOTHING
  )
  return jnp.concatenate([first, tokens, end, rest], axis=1)


def judge(
  family: Family, problems: Problems, ids: jax.Array, mask: jax.Array
) -> jax.Array:
  """1 for completions that follow a route to its right end.

  Args:
    family, problems: P of them.
    ids: completions, shape `[P, G, T]`.
    mask: shape `[P, G, T]`.

  Returns:
    rewards, float32, shape `[P, G]`.
  """
  counts = mask.astype(bool)
  is_right = jnp.zeros(ids.shape[:2], bool)
  for route in range(len(family.routes)):
    target = expected(family, problems, route)[:, None]
    same = (ids == target) | ((target == _ANY_DIGIT) & (ids < 10))
    same |= (target == _ANY_FILLER) & (ids >= FILLERS[0])
    same = jnp.where(target == _NOTHING, ~counts, same & counts)
    is_right |= jnp.all(same, axis=-1)
  return is_right.astype(jnp.float32)


def hints(
  family: Family, problems: Problems, sibling: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """What feedback says, and which of its tokens count.

  Args:
    family, problems: P of them.
    sibling: a successful completion for each row, `[P, T]`, PAD after its
      end; for `feedback=sibling` alone.

  Returns:
    ids and mask, shape `[P, hint_length]`.
  """
  routes = range(len(family.routes))
  references = [step_digits(family, problems, r, None) for r in routes]
  if family.feedback == "sibling":
    assert sibling is not None
    ids = sibling
  elif family.feedback == "answer":
    ids = references[0][:, -1:]
  else:
    ids = jnp.concatenate(references, axis=1)
  return ids, (ids != PAD).astype(jnp.int32)


def teacher_prompts(
  problems: Problems, hint_ids: jax.Array, hint_mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Feedback, then the problem. Ids and mask, shape `[P, S']`."""
  student = prompts(problems)
  marker = jnp.full((student.shape[0], 1), HINT)
  ids = jnp.concatenate([marker, hint_ids, student], axis=1)
  ones = jnp.ones_like(student)
  mask = jnp.concatenate([ones[:, :1], hint_mask, ones], axis=1)
  return ids, mask


def reference_completion(
  family: Family, problems: Problems, route: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """A right completion on the given route of each problem. `[P, T]` each."""
  fillers = jax.random.choice(
    key, jnp.asarray(FILLERS), (route.shape[0], family.completion_length)
  )
  options = []
  for r in range(len(family.routes)):
    written = step_digits(family, problems, r, None)
    target = expected(family, problems, r)
    steps = np.s_[:, 1 : written.shape[1] + 1]
    is_filler = target[steps] == _ANY_FILLER
    target = target.at[steps].set(jnp.where(is_filler, fillers[steps], written))
    options.append(jnp.where(target == _NOTHING, PAD, target))
  ids = jnp.stack(options)[route, jnp.arange(route.shape[0])]
  return ids, (ids != PAD).astype(jnp.int32)


def base_targets(
  family: Family,
  problems: Problems,
  route: jax.Array,
  ids: jax.Array,
  is_told: jax.Array,
  sibling_route: jax.Array,
) -> jax.Array:
  """The distribution that the base model learns at each place.

  Args:
    family, problems: P of them.
    route: the one that `ids` are on. Shape `[P]`.
    ids: completions, some of their digits spoilt. Shape `[P, T]`.
    is_told: whether feedback stands in the prompt. Shape `[P]`, bool.
    sibling_route: whose completion the feedback is, where it is one. `[P]`.

  Returns:
    probabilities, shape `[P, T, V]`.
  """
  options = [
    _route_targets(family, problems, r, ids, is_told)
    for r in range(len(family.routes))
  ]
  targets = jnp.stack(options)[route, jnp.arange(route.shape[0])]
  preference = np.zeros(VOCAB_SIZE, np.float32)
  for token, r in zip(ROUTES, family.routes, strict=False):
    preference[token] = r.preference
  first = jnp.broadcast_to(jnp.asarray(preference), (len(route), VOCAB_SIZE))
  if family.feedback == "sibling":
    taken = jnp.asarray(ROUTES)[sibling_route]
    follows = jax.nn.one_hot(taken, VOCAB_SIZE)
    others = jnp.sum(jax.nn.one_hot(jnp.asarray(ROUTES), VOCAB_SIZE), axis=0)
    weight = family.sibling_weight
    told = weight * follows + (1 - weight) * (others[None] - follows)
    first = jnp.where(is_told[:, None], told, first)
  return targets.at[:, 0].set(first)


def _route_targets(family, problems, route, ids, is_told):
  spec = family.routes[route]
  before = ids[:, : len(spec.steps)]  # column i stands before step i
  right = step_digits(family, problems, route, before)
  known = step_digits(family, problems, route, None)
  columns = [jnp.zeros((ids.shape[0], VOCAB_SIZE))]
  for i, step in enumerate(spec.steps):
    if step == "filler":
      column = jnp.zeros(VOCAB_SIZE).at[jnp.asarray(FILLERS)].set(0.25)
      columns.append(jnp.broadcast_to(column, columns[0].shape))
      continue
    accuracy = jnp.full(ids.shape[0], spec.accuracy)
    if spec.num_known:
      is_known = problems.digits[:, i] < spec.num_known  # codes alone
      accuracy = jnp.where(is_known, 0.95, accuracy)
    column = _digit_targets(right[:, i], accuracy)
    # Other feedback gives away the final digit, whatever the route.
    if family.feedback == "traces" or i == len(spec.steps) - 1:
      told = _digit_targets(known[:, i], jnp.full(ids.shape[0], 0.998))
      column = jnp.where(is_told[:, None], told, column)
    columns.append(column)
  end = jnp.zeros(VOCAB_SIZE).at[EOS].set(1.0)
  while len(columns) < family.completion_length:
    columns.append(jnp.broadcast_to(end, columns[0].shape))
  return jnp.stack(columns, axis=1)


def _digit_targets(right: jax.Array, accuracy: jax.Array) -> jax.Array:
  """The right digit with its probability, the others alike. `[P, V]`."""
  others = (1 - accuracy) / 9
  chosen = jax.nn.one_hot(right, VOCAB_SIZE)
  is_digit = (jnp.arange(VOCAB_SIZE) < 10).astype(jnp.float32)
  spread = others[:, None] * (is_digit[None] - chosen)
  return accuracy[:, None] * chosen + spread


def _code() -> np.ndarray:
  """Without fixed points; how much of it a base knows is its family's."""
  return np.asarray([7, 4, 9, 0, 6, 2, 1, 8, 3, 5])
