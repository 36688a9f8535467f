"""Compares training steps on completions of very different lengths.

  python -m benchmarks.train_step

Lengths are log-normal with a mean of a quarter of the limit. `padded` computes
all that the limits allow, as a plain training step does. `trimmed` is what
training does by default: columns that are padding in all rows are cut off. `by
length` is `optimizer.tokens_per_micro_batch`. Each is measured under limits
that the longest completion just fits, and under looser ones, with the same
completions.

DistIL learns with a leave-one-out baseline, for which `by length` takes a
forward pass of its own, or without (`--baseline none`). The teacher is another
set of weights. `MB` is what the compiled program needs besides its arguments
and results, the largest if there are several. Seconds are medians of steps in
turn, without compilation.
"""

import argparse
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import machine
from distil_jax import config
from distil_jax.data import length_buckets
from distil_jax.models import decoder, decoder_config, sharding
from distil_jax.training import (
  build_step,
  host_step,
  length_step,
  micro_batches,
  train_state,
  trimming,
)
from distil_jax.types import TrainBatch

GROUP_SIZE = 4
OPTIMIZER = optax.sgd(1e-3)
TEACHER = config.TeacherConfig(parameters="frozen")
WAYS = ("padded", "trimmed", "by length")
COLUMNS = ("limits", "way", "s", "MB", "padding", "programs", "s ratio")


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is learned, of which network, on which mesh."""

  objective: config.DistilConfig
  graphdef: Any
  params: Any
  mesh: jax.sharding.Mesh

  def state(self) -> train_state.TrainState:
    state = train_state.init_state(
      jax.tree.map(lambda x: x.copy(), self.params),
      optimizer=OPTIMIZER,
      keeps_teacher=True,
      seed=0,
    )
    return jax.device_put(state, self.places(state))

  def places(self, state) -> train_state.TrainState:
    return train_state.state_shardings(state, self.mesh, OPTIMIZER)


def lengths_of(rng, count: int, limit: int) -> np.ndarray:
  """Returns log-normal lengths; the longest is the limit."""
  lengths = rng.lognormal(np.log(limit / 4) - 0.5, 1.0, count)
  lengths = np.clip(lengths, 1, limit).astype(int)
  lengths[np.argmax(lengths)] = limit
  return lengths


def batch_of(lengths, options, scale: int) -> TrainBatch:
  """Returns the same completions under limits that are looser by a factor."""
  rng = np.random.default_rng(1)
  count, limit = len(lengths), options.completion

  def draw(columns):
    return rng.integers(1, options.vocabulary, (count, columns), np.int32)

  def prompts(columns):
    ids = draw(columns)
    width = [(0, 0), (columns * (scale - 1), 0)]
    return np.pad(ids, width), np.pad(np.ones_like(ids), width)

  width = [(0, 0), (0, limit * (scale - 1))]
  mask = (np.arange(limit) < lengths[:, None]).astype(np.int32)
  ids = np.pad(draw(limit) * mask, width)
  prompt_ids, prompt_mask = prompts(options.prompt)
  teacher_ids, teacher_mask = prompts(2 * options.prompt)
  return TrainBatch(
    prompt_ids=prompt_ids,
    prompt_mask=prompt_mask,
    teacher_prompt_ids=teacher_ids,
    teacher_prompt_mask=teacher_mask,
    completion_ids=ids,
    completion_mask=np.pad(mask, width),
    sample_mask=np.ones(count, np.int32),
    rewards=rng.random(count).astype(np.float32),
    old_log_probs=np.full(ids.shape, -1.0, np.float32),
  )


class Steps:
  """Makes steps in each way; equal arrays share their programs."""

  def __init__(self, setting: Setting, num_tokens: int):
    self._setting = setting
    self._state = setting.state()
    self._objective = build_step.objective_by_length(
      setting.objective,
      TEACHER,
      graphdef=setting.graphdef,
      group_size=GROUP_SIZE,
      is_off_policy=False,
    )
    self._by_length = length_step.LengthStep(
      self._objective,
      OPTIMIZER,
      setting.places(self._state),
      micro_batches.Sizes(num_tokens),
    )
    self._compiled: dict[Any, Any] = {}

  def whole(self, batch: TrainBatch):
    """Returns a function that makes a step of one program, and its row."""
    setting, state = self._setting, self._state
    step = build_step.train_step(
      setting.objective,
      TEACHER,
      graphdef=setting.graphdef,
      optimizer=OPTIMIZER,
      group_size=GROUP_SIZE,
      num_sequences=len(batch.completion_ids),
    )
    placed = sharding.put_batch(setting.mesh, batch)
    shapes = tuple(x.shape for x in jax.tree.leaves(batch))
    if shapes not in self._compiled:
      # Not donated, because every step begins from the same state.
      self._compiled[shapes] = jax.jit(step).lower(state, placed).compile()
    compiled = self._compiled[shapes]
    row = {
      "MB": temporary_megabytes(compiled),
      "padding": host_step.padding_share([batch]),
      "programs": 1,
    }
    return lambda: compiled(state, placed), row

  def by_length(self, batch: TrainBatch):
    """Returns a function that makes a step by length, and its row."""

    def run():
      # A step donates its state.
      state = jax.tree.map(lambda x: x.copy(), self._state)
      after, metrics, read = self._by_length(state, batch)
      return after.step, metrics, read

    read = run()[2]
    shapes = {rows.completion_ids.shape: rows for rows in read}
    row = {
      # That with the most columns, of student and teacher, needs the most.
      "MB": gradient_megabytes(
        self._objective, self._state, max(shapes.values(), key=columns)
      ),
      "padding": host_step.padding_share(read),
      "programs": len(shapes),
    }
    return lambda: run()[:2], row


def columns(rows: TrainBatch) -> int:
  return rows.completion_mask.size + rows.teacher_prompt_mask.size


def temporary_megabytes(compiled: Any) -> float:
  return compiled.memory_analysis().temp_size_in_bytes / 1e6


def gradient_megabytes(objective, state, rows: TrainBatch) -> float:
  """Returns what the gradient of a micro-batch needs beside its arguments."""
  if objective.credit_fn is not None:
    weights = np.zeros(rows.completion_ids.shape, np.float32)
    rows = dataclasses.replace(
      rows, score_weights=weights, future_costs=weights
    )
  bind = functools.partial(functools.partial, objective=objective)
  others = (state.params, state, None, rows)
  totals = jax.eval_shape(bind(length_step.slice_gradient), *others)
  add = jax.jit(bind(length_step.accumulate), donate_argnums=0)
  return temporary_megabytes(add.lower(totals, *others).compile())


def measure(setting: Setting, options) -> list[dict[str, Any]]:
  """Returns the rows of the table."""
  rng = np.random.default_rng(0)
  lengths = lengths_of(rng, options.sequences, options.completion)
  longest = 2 * options.prompt + options.completion
  steps = Steps(setting, options.rows * longest)
  functions, rows = {}, {}
  for scale in (1, options.scale):
    batch = batch_of(lengths, options, scale)
    for way in WAYS:
      name = f"{scale}x {way}"
      if way != "padded":
        batch = trimming.Trimmer()(batch)
      make = steps.by_length if way == "by length" else steps.whole
      functions[name], row = make(batch)
      rows[name] = {"limits": f"{scale}x", "way": way, **row}
  times = machine.seconds(functions, rounds=options.rounds)
  for name, row in rows.items():
    row["s"] = times[name]
    row["s ratio"] = times[name] / times["1x by length"]
  return list(rows.values())


def line(row: dict[str, Any]) -> str:
  """Returns a row of the table as text."""
  forms = {"s": ".2f", "MB": ".0f", "padding": ".1%", "s ratio": ".2f"}
  cells = [format(row[name], forms.get(name, "")) for name in COLUMNS]
  return "| " + " | ".join(cells) + " |"


def padding_table(limit: int = 4096, prompt: int = 128) -> list[str]:
  """Returns how much is padding by batch and budget; nothing is run."""
  found = ["| sequences | budget, longest rows | padding | programs |"]
  found.append("|" + " --- |" * 4)
  for count in (64, 128, 256, 512):
    for rows in (4, 8, 16):
      rng, shares, shapes = np.random.default_rng(0), [], set()
      for _ in range(20):
        lengths = np.sort(lengths_of(rng, count, limit))[::-1]
        micros = micro_batches.plan(
          np.arange(count),
          lengths.tolist(),
          micro_batches.Sizes(rows * (limit + prompt)),
          prompt_width=prompt,
          limit=limit,
        )
        computed = sum(m.num_rows * (prompt + m.width) for m in micros)
        shares.append(1 - (lengths.sum() + count * prompt) / computed)
        shapes |= {(m.num_rows, m.width) for m in micros}
      found.append(
        f"| {count} | {rows} | {np.mean(shares):.1%} | {len(shapes)} |"
      )
  most = 3 * length_buckets.num_sizes(limit)
  found.append(f"\nPrograms are those of 20 steps; {most} are possible.")
  return found


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.train_step",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--sequences", type=int, default=32)
  parser.add_argument("--completion", type=int, default=128, help="limit of T")
  parser.add_argument("--prompt", type=int, default=32, help="S")
  parser.add_argument("--scale", type=int, default=8, help="of looser limits")
  parser.add_argument(
    "--rows", type=int, default=4, help="budget, longest rows"
  )
  parser.add_argument("--vocabulary", type=int, default=8192, help="V")
  parser.add_argument("--width", type=int, default=64, help="D")
  parser.add_argument("--layers", type=int, default=2)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument(
    "--baseline", choices=("leave_one_out", "none"), default="leave_one_out"
  )
  parser.add_argument("--save", help="also write the tables into this file")
  options = parser.parse_args()
  network = decoder_config.DecoderConfig(
    vocab_size=options.vocabulary,
    width=options.width,
    num_layers=options.layers,
    num_heads=options.width // 32,
    num_kv_heads=options.width // 64,
    head_size=32,
    mlp_size=3 * options.width,
    rope_theta=1e4,
    tie_embeddings=True,
    max_positions=4 * options.scale * options.completion,
  )
  graphdef, _ = decoder.make(network)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  baseline = None if options.baseline == "none" else "leave_one_out"
  setting = Setting(
    config.DistilConfig(baseline=baseline),
    graphdef,
    decoder.init(network, jax.random.key(0)),
    mesh,
  )
  report = [
    machine.description(),
    f"{options.sequences} sequences, completions up to {options.completion}, "
    f"prompts of {options.prompt} and {2 * options.prompt}, vocabulary "
    f"{options.vocabulary}, width {options.width}, {options.layers} layers, "
    f"baseline {options.baseline}, budget of {options.rows} longest rows; "
    f"medians of {options.rounds} rounds in turn",
    "",
    "| " + " | ".join(COLUMNS) + " |",
    "|" + " --- |" * len(COLUMNS),
  ]
  with jax.set_mesh(mesh):
    report += map(line, measure(setting, options))
  report += ["", *padding_table()]
  print("\n".join(report), flush=True)
  if options.save:
    pathlib.Path(options.save).write_text("\n".join(report) + "\n", "utf-8")


if __name__ == "__main__":
  main()
