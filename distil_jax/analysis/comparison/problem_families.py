"""Defines families of small problems whose difficulty is known exactly.

A problem is a row of digits. A completion chooses a *route* with its first
token, writes the steps of that route, and ends. Soft targets (`base_models`)
set what the base model can do of each step, so a family isolates one question,
such as: what happens if the base never succeeds, or if an early choice decides?

All functions run on the device, on arrays.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

# The vocabulary: ten digits (0 to 9), these special tokens, and four fillers.
PAD, EOS, ASK, HINT = 10, 11, 12, 13
ROUTES = (14, 15)
FILLERS = (16, 17, 18, 19)
VOCAB_SIZE = 20
# Placeholders in the result of `expected`; no token has a negative id.
_ANY_FILLER, _ANY_DIGIT, _NOTHING = -1, -2, -3

Step = Literal["code", "fresh", "total", "sum", "filler"]
Feedback = Literal["answer", "traces", "sibling"]


@dataclasses.dataclass(frozen=True)
class Route:
  """Describes one way to answer.

  Attributes:
    steps: Tokens to write after the token of the route.
      code: The image of a digit under a fixed code.
      fresh: A random digit of the problem, which only feedback shows.
      total: The running total of the digits, mod 10.
      sum: The total of all digits in one step, mod 10.
      filler: Any of four tokens.
    preference: The base model's probability of the route.
    accuracy: The base model's probability of the right digit in each step,
      without feedback.
    num_known: Digits of the code that the base model knows with probability
      0.95.
  """

  steps: tuple[Step, ...]
  preference: float
  accuracy: float
  num_known: int = 0


@dataclasses.dataclass(frozen=True)
class Family:
  """Describes a distribution of problems and their feedback.

  Attributes:
    question: Why the family is there.
    num_digits: Length of a problem.
    routes: One or two routes.
    feedback: What the teacher's prompt holds. `answer`: the last digit;
      `traces`: the digits of every route; `sibling`: a successful completion of
      the group, or nothing if there is none.
    checks_all: True if every digit counts, False if only the last one does.
    sibling_weight: Probability with which the teacher takes the route of the
      sibling.
    wrong_feedback: Share of problems that get the feedback of another problem.
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
    """Returns the length of the longest route with its first and end token."""
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
  """Holds problems on the device.

  Attributes:
    digits: Digits of the prompt. Shape `[P, n]`.
    fresh: Random digits that the prompt does not show. Shape
      `[P, longest route]`.
    index: Identity within the run, which seeds the samples. Shape `[P]`,
      uint32.
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
  """Returns the student's prompts: the digits and a question mark. `[P, S]`."""
  ask = jnp.full((problems.digits.shape[0], 1), ASK)
  return jnp.concatenate([problems.digits, ask], axis=1)


def step_digits(
  family: Family, problems: Problems, route: int, before: jax.Array | None
) -> jax.Array:
  """Returns the right digit of each step of a route. Shape `[P, steps]`.

  Args:
    family, problems: The family and P problems of it.
    route: Number of the route.
    before: Tokens written before each step, from which a running total
      continues. Shape `[P, steps]`. None means that all of them were right.
  """
  code = jnp.asarray(_code())
  totals = jnp.cumsum(problems.digits, axis=1) % 10
  columns, position = [], 0  # position of the next digit to use
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
        # A corrupted token may be no digit; the total then goes on from the
        # right one.
        column = jnp.where(written < 10, own, column)
      position += 1
    else:
      column = jnp.zeros_like(problems.digits[:, 0])
    columns.append(column)
  return jnp.stack(columns, axis=1)


def expected(family: Family, problems: Problems, route: int) -> jax.Array:
  """Returns the tokens of a right completion. Shape `[P, T]`.

  Negative entries stand for any filler, any digit, and no token.
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
  """Returns reward 1 for completions that follow a route to its right end.

  Args:
    family, problems: The family and P problems of it.
    ids: Completions. Shape `[P, G, T]`.
    mask: 1 where the token counts. Shape `[P, G, T]`.

  Returns:
    Rewards, float32, shape `[P, G]`.
  """
  counts = mask.astype(bool)
  is_right = jnp.zeros(ids.shape[:2], bool)
  for route in range(len(family.routes)):
    target = expected(family, problems, route)[:, None]
    same = (ids == target) | ((target == _ANY_DIGIT) & (ids < 10))
    same |= (target == _ANY_FILLER) & (ids >= FILLERS[0])
    # Where nothing may stand, a token that counts is as wrong as another token.
    same = jnp.where(target == _NOTHING, ~counts, same & counts)
    is_right |= jnp.all(same, axis=-1)
  return is_right.astype(jnp.float32)


def hints(
  family: Family, problems: Problems, sibling: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns the tokens of the feedback and their mask.

  Args:
    family, problems: The family and P problems of it.
    sibling: A successful completion for each row, with PAD after its end. Shape
      `[P, T]`; needed only for `feedback=sibling`.

  Returns:
    Ids and mask, shape `[P, hint_length]`.
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
  """Returns prompts with feedback, then the problem: ids and mask."""
  student = prompts(problems)
  marker = jnp.full((student.shape[0], 1), HINT)
  ids = jnp.concatenate([marker, hint_ids, student], axis=1)
  ones = jnp.ones_like(student)
  mask = jnp.concatenate([ones[:, :1], hint_mask, ones], axis=1)
  return ids, mask


def reference_completion(
  family: Family, problems: Problems, route: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns a right completion on a route per problem: ids and mask."""
  fillers = jax.random.choice(
    key, jnp.asarray(FILLERS), (route.shape[0], family.completion_length)
  )
  # Under jit the route of a problem is data: all routes are written, and one is
  # taken for each problem.
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
  has_feedback: jax.Array,
  sibling_route: jax.Array,
) -> jax.Array:
  """Returns the distribution that the base model learns at each position.

  Args:
    family, problems: The family and P problems of it.
    route: Route of each completion. Shape `[P]`.
    ids: Completions, with some digits corrupted. Shape `[P, T]`.
    has_feedback: True if the prompt holds feedback. Shape `[P]`, bool.
    sibling_route: Route of the sibling, if siblings are the feedback. `[P]`.

  Returns:
    Probabilities, shape `[P, T, V]`.
  """
  options = [
    _route_targets(family, problems, r, ids, has_feedback)
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
    informed = weight * follows + (1 - weight) * (others[None] - follows)
    first = jnp.where(has_feedback[:, None], informed, first)
  return targets.at[:, 0].set(first)


def _route_targets(family, problems, route, ids, has_feedback):
  spec = family.routes[route]
  before = ids[:, : len(spec.steps)]  # column i precedes step i
  right = step_digits(family, problems, route, before)
  feedback = step_digits(family, problems, route, None)
  columns = [jnp.zeros((ids.shape[0], VOCAB_SIZE))]
  for i, step in enumerate(spec.steps):
    if step == "filler":
      column = jnp.zeros(VOCAB_SIZE).at[jnp.asarray(FILLERS)].set(0.25)
      columns.append(jnp.broadcast_to(column, columns[0].shape))
      continue
    accuracy = jnp.full(ids.shape[0], spec.accuracy)
    if spec.num_known:
      is_known = problems.digits[:, i] < spec.num_known  # only for codes
      accuracy = jnp.where(is_known, 0.95, accuracy)
    column = _digit_targets(right[:, i], accuracy)
    # Other kinds of feedback show only the last digit, on every route.
    if family.feedback == "traces" or i == len(spec.steps) - 1:
      informed = _digit_targets(feedback[:, i], jnp.full(ids.shape[0], 0.998))
      column = jnp.where(has_feedback[:, None], informed, column)
    columns.append(column)
  end = jnp.zeros(VOCAB_SIZE).at[EOS].set(1.0)
  while len(columns) < family.completion_length:
    columns.append(jnp.broadcast_to(end, columns[0].shape))
  return jnp.stack(columns, axis=1)


def _digit_targets(right: jax.Array, accuracy: jax.Array) -> jax.Array:
  """Returns probabilities of digits; wrong ones are equal. `[P, V]`."""
  others = (1 - accuracy) / 9
  chosen = jax.nn.one_hot(right, VOCAB_SIZE)
  is_digit = (jnp.arange(VOCAB_SIZE) < 10).astype(jnp.float32)
  spread = others[:, None] * (is_digit[None] - chosen)
  return accuracy[:, None] * chosen + spread


def _code() -> np.ndarray:
  """Returns the code, which has no fixed points."""
  return np.asarray([7, 4, 9, 0, 6, 2, 1, 8, 3, 5])
