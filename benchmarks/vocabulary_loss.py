"""Compares distillation with all logits in memory and with one tile of them.

  python -m benchmarks.vocabulary_loss

Only the loss is measured, from hidden states to their gradient and the
unembedding's. `dense` is what one writes first: logits of student and teacher,
log-softmax, autodiff. `ours` is what training runs. DistIL is forward
cross-entropy with normalised future costs and a leave-one-out baseline here.

Time is taken if dense fits into memory, up to `--timed-tokens`. Memory is that
of the compiled program besides its arguments and results. Products are those
with an unembedding for each token, counted in the traced program. `of product
rate` is their rate as a share of the rate of one large product.
"""

import argparse
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from distil_jax import objectives
from distil_jax.ops import credit, fused_statistics, token_statistics
from distil_jax.ops.divergences import Divergence

GROUP_SIZE = 8
# The local cost of each token, and whether future costs are charged to it.
OBJECTIVES = {
  "forward CE": ("forward_cross_entropy", False),
  "reverse KL": ("reverse_kl", False),
  "JS(0.5)": ("sdpo", False),
  "DistIL": ("forward_cross_entropy", True),
}
CREDIT = objectives.CreditSettings(
  baseline="leave_one_out", group_size=GROUP_SIZE
)


def divergence_of(kind: str) -> Divergence:
  return Divergence(kind, weight=0.5 if kind == "sdpo" else None)  # pyright: ignore[reportArgumentType]


def dense(objective: str, hidden, matrix, teacher, teacher_matrix, ids, mask):
  """Returns value and gradients with all logits in memory."""
  kind, has_credit = OBJECTIVES[objective]
  weights = mask / jnp.sum(mask)

  def product(states, matrix):
    return jnp.einsum(
      "btd,dv->btv", states, matrix, preferred_element_type=jnp.float32
    )

  def loss(hidden, matrix):
    student = jax.nn.log_softmax(product(hidden, matrix))
    labels = jax.nn.log_softmax(
      jax.lax.stop_gradient(product(teacher, teacher_matrix))
    )
    costs = naive_costs(kind, student, labels)
    if not has_credit:
      return jnp.sum(weights * costs)
    log_probs = jnp.take_along_axis(student, ids[..., None], axis=-1)[..., 0]
    scores, _ = objectives.score_weights(costs, mask, CREDIT)
    return jnp.sum(weights * (costs + scores * log_probs))

  return jax.value_and_grad(loss, (0, 1))(hidden, matrix)


def naive_costs(kind: str, student, teacher):
  """Returns costs by the formulas of the papers, for autodiff."""
  if kind == "forward_cross_entropy":
    return -jnp.sum(jnp.exp(teacher) * student, axis=-1)
  if kind == "reverse_kl":
    return jnp.sum(jnp.exp(student) * (student - teacher), axis=-1)
  mixture = jnp.logaddexp(student, teacher) - math.log(2)
  return 0.5 * jnp.sum(
    jnp.exp(student) * (student - mixture)
    + jnp.exp(teacher) * (teacher - mixture),
    axis=-1,
  )


def ours(objective: str, hidden, matrix, teacher, teacher_matrix, ids, mask):
  """Returns value and gradients as training computes them."""
  kind, has_credit = OBJECTIVES[objective]

  def token_losses(later, statistics, rows):
    mask, weights = rows
    scores = None
    if has_credit:
      scores, _, later = objectives.score_weights_before(
        objectives.token_costs(statistics, mask, cost="cross_entropy"),
        mask,
        later,
        CREDIT,
      )
    losses = objectives.feedback_losses(statistics, mask, scores)
    return weights * losses, (later, statistics.entropies)

  def loss(hidden, matrix):
    source = fused_statistics.compared(
      hidden,
      matrix,
      token_statistics.DenseTeacher((teacher,), (teacher_matrix,)),
      ids,
      divergence_of(kind),
    )
    value, _ = source.fused_loss(
      token_losses,
      (mask, mask / jnp.sum(mask)),
      credit.nothing_later(mask.shape[0]),
    )
    return value

  return jax.value_and_grad(loss, (0, 1))(hidden, matrix)


def arguments(num_tokens: int, vocab_size: int, width: int, dtype: str):
  """Returns the shapes of the arguments of both versions."""
  shape = (GROUP_SIZE, num_tokens // GROUP_SIZE)
  of = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.dtype(dtype))
  return (
    of((*shape, width)),
    of((width, vocab_size)),
    of((*shape, width)),
    of((width, vocab_size)),
    jax.ShapeDtypeStruct(shape, jnp.int32),
    jax.ShapeDtypeStruct(shape, jnp.float32),
  )


def values(shapes: Any) -> tuple[jax.Array, ...]:
  """Returns arguments with logits of standard deviation 1; no padding."""
  hidden, matrix, teacher, teacher_matrix, ids, mask = shapes
  keys = jax.random.split(jax.random.key(0), 5)
  draw = jax.jit(jax.random.normal, static_argnums=(1, 2))
  scale = np.float32(hidden.shape[-1] ** -0.5)
  return (
    draw(keys[0], hidden.shape, hidden.dtype),
    draw(keys[1], matrix.shape, matrix.dtype) * scale.astype(matrix.dtype),
    draw(keys[2], teacher.shape, teacher.dtype),
    draw(keys[3], matrix.shape, matrix.dtype) * scale.astype(matrix.dtype),
    jax.random.randint(keys[4], ids.shape, 0, teacher_matrix.shape[-1]),
    jnp.ones(mask.shape, mask.dtype),
  )


def products_per_token(function: Callable[..., Any], shapes: Any) -> float:
  """Returns the matrix products with the vocabulary, in units of N · D · V."""
  hidden, matrix = shapes[:2]
  whole = math.prod(hidden.shape) * matrix.shape[-1]
  return _operations(jax.make_jaxpr(function)(*shapes).jaxpr) / whole


def _operations(jaxpr: Any) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      summed = math.prod(left[axis] for axis in contracted)
      total += summed * math.prod(equation.outvars[0].aval.shape)
    inner = sum(
      map(_operations, jax.extend.core.jaxprs_in_params(equation.params))
    )
    total += inner * equation.params.get("length", 1)
  return total


def measure(shape, *, objective: str, options, rate: float) -> dict[str, Any]:
  """Returns one row of the table."""
  num_tokens, vocab_size = shape
  shapes = arguments(num_tokens, vocab_size, options.width, options.dtype)
  versions = {
    name: functools.partial(function, objective)
    for name, function in (("dense", dense), ("ours", ours))
  }
  compiled = {
    name: jax.jit(function).lower(*shapes).compile()
    for name, function in versions.items()
  }
  row: dict[str, Any] = {
    "V": vocab_size,
    "N": num_tokens,
    "objective": objective,
  }
  memory = {name: c.memory_analysis() for name, c in compiled.items()}
  for name in versions:
    row[f"{name} products"] = products_per_token(versions[name], shapes)
    row[f"{name} MB"] = memory[name].temp_size_in_bytes / 1e6
  row["MB ratio"] = row["ours MB"] / row["dense MB"]
  needed = sum(
    getattr(memory["dense"], f"{part}_size_in_bytes")
    for part in ("temp", "argument", "output")
  )
  if num_tokens > options.timed_tokens or needed > machine.memory_bytes():
    return row
  inputs = values(shapes)
  times = machine.seconds(
    {name: functools.partial(c, *inputs) for name, c in compiled.items()},
    rounds=options.rounds,
  )
  for name in versions:
    row[f"{name} s"] = times[name]
  row["s ratio"] = times["ours"] / times["dense"]
  work = 2 * row["ours products"] * num_tokens * options.width * vocab_size
  row["of product rate"] = work / times["ours"] / rate
  return row


COLUMNS = {
  "V": "{:d}",
  "N": "{:d}",
  "objective": "{}",
  "dense products": "{:.2f}",
  "ours products": "{:.2f}",
  "dense MB": "{:.0f}",
  "ours MB": "{:.0f}",
  "MB ratio": "{:.3f}",
  "dense s": "{:.2f}",
  "ours s": "{:.2f}",
  "s ratio": "{:.2f}",
  "of product rate": "{:.0%}",
}


def line(row: dict[str, Any] | None = None) -> str:
  """Returns a row of the table as text; its head if `row` is None."""
  cells = []
  for name, form in COLUMNS.items():
    text = name
    if row is not None:
      text = form.format(row[name]) if name in row else "–"
    cells.append(text.rjust(max(len(name), 10)))
  return "| " + " | ".join(cells) + " |"


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.vocabulary_loss",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--width", type=int, default=1024, help="D")
  parser.add_argument(
    "--tokens", type=int, nargs="+", default=[512, 2048, 8192, 16384]
  )
  parser.add_argument(
    "--vocabulary", type=int, nargs="+", default=[32768, 151936]
  )
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--timed-tokens", type=int, default=2048)
  parser.add_argument("--save", help="also write the table into this file")
  options = parser.parse_args()
  for objective in options.objectives:
    if objective not in OBJECTIVES:
      parser.error(f"--objectives {objective!r} is none of {list(OBJECTIVES)}")
  for count in options.tokens:
    if count % GROUP_SIZE:
      parser.error(f"--tokens {count} is not a multiple of {GROUP_SIZE}")
  rate = machine.product_rate(options.dtype, rounds=options.rounds)
  report = [
    machine.description(),
    f"width {options.width}, {options.dtype}, medians of {options.rounds} "
    f"rounds in turn; one product of matrices runs at {rate / 1e9:.0f} GFLOP/s",
    "",
    line(),
    "|" + "|".join("-" * (max(len(c), 10) + 2) for c in COLUMNS) + "|",
  ]
  print("\n".join(report), flush=True)
  for vocab_size in options.vocabulary:
    for count in options.tokens:
      for objective in options.objectives:
        row = measure(
          (count, vocab_size), objective=objective, options=options, rate=rate
        )
        report.append(line(row))
        print(report[-1], flush=True)
  if options.save:
    pathlib.Path(options.save).write_text("\n".join(report) + "\n", "utf-8")


if __name__ == "__main__":
  main()
