"""Formats plans and searches as text and as JSON."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from distil_jax.planning import advice
from distil_jax.planning.results import TRAINING, Phase, Plan, Search

_UNITS = (
  ("TiB", 2.0**40),
  ("GiB", 2.0**30),
  ("MiB", 2.0**20),
  ("KiB", 2.0**10),
)
_NOTES = (
  "Teacher-forced scoring, of student and teacher, is part of the training "
  "step.",
  "Times are lower bounds: published peaks, and everything that can overlap "
  "does. Sampling is counted with every completion at its maximum length and "
  "the longest KV cache.",
  "FLOPs are those of matrix products. Bytes of a gather or scatter are those "
  "of the whole array.",
)


def to_text(plan: Plan) -> str:
  """Returns a whole plan as text for a terminal."""
  parts = [
    _head(plan),
    _state(plan),
    _memory(plan),
    _costs(plan),
    _messages(plan),
    _verdict(plan),
    "\n".join(_NOTES),
  ]
  return "\n\n".join(part for part in parts if part)


def to_json(plan: Plan) -> str:
  """Returns a whole plan as a JSON object, in bytes and seconds."""
  return json.dumps(to_dict(plan), indent=2)


def to_dict(plan: Plan) -> dict[str, Any]:
  """Returns a whole plan as plain values, in bytes and seconds."""
  run = plan.run
  return {
    "hardware": plan.hardware.name,
    "note": plan.hardware.note,
    "num_chips": len(plan.hardware.devices),
    "mesh": dict(run.mesh),
    "rollout_mesh": dict(run.rollout_mesh),
    "num_params": plan.num_params,
    "num_sequences": run.num_sequences,
    "micro_batch_size": run.micro_batch_size,
    "num_slots": run.num_slots,
    "memory_bytes": plan.capacity,
    "state_by_hand": dict(plan.parts),
    "phases": [_phase(phase) for phase in plan.phases],
    "seconds": plan.seconds,
    "fits": plan.fits,
    "advice": advice.advice(plan),
    "hints": advice.hints(plan),
  }


# A program that was refused has no costs: `x and x.y` then gives null.
def _phase(phase: Phase) -> dict[str, Any]:
  memory, costs, times = phase.memory, phase.costs, phase.times
  return {
    "name": phase.name,
    "arguments_by_hand": dict(memory.by_hand),
    "argument_bytes": memory.arguments,
    "temporary_bytes": memory.temporaries,
    "bytes_beside": memory.beside,
    "peak_bytes": memory.peak,
    "refused": memory.refused is not None,
    "flops": costs and costs.flops,
    "bytes_accessed": costs and costs.num_bytes,
    "messages": costs
    and {
      kind: {"count": m.count, "bytes": m.num_bytes}
      for kind, m in costs.by_kind().items()
    },
    "unknown_kernels": costs and sorted(costs.unknown_kernels),
    "seconds": times
    and {
      "compute": times.compute,
      "memory": times.memory,
      "network": times.network,
    },
    "bound": times and times.bound,
  }


def _head(plan: Plan) -> str:
  run = plan.run
  axes = " ".join(f"{k}={v}" for k, v in run.mesh.items())
  lines = [
    f"{plan.hardware.name}, mesh {axes}",
    *([plan.hardware.note] if plan.hardware.note else []),
    f"{_count(plan.num_params)} parameters in {run.param_dtype}, "
    f"computing in {run.compute_dtype}, remat={run.remat}",
    f"a training step: {run.num_problems} problems x {run.group_size} samples, "
    f"prompts of {run.prompt_length}, completions of {run.completion_length}"
    + (
      f", teacher's prompts of {run.teacher_prompt_length} tokens"
      if run.teacher_prompt_length
      else " tokens"
    ),
    f"at once: {run.num_slots} completions sampled, {run.micro_batch_size} "
    "sequences trained on",
  ]
  if run.tokens_per_micro_batch is not None:
    lines.append(
      "the training step is planned as micro-batches at the limits of lengths; "
      f"of shorter sequences {run.tokens_per_micro_batch} tokens are trained "
      "on at once"
    )
  if dict(run.rollout_mesh) != dict(run.mesh):
    axes = " ".join(f"{k}={v}" for k, v in run.rollout_mesh.items())
    lines.append(f"sampling on mesh {axes}")
  return "\n".join(lines)


def _state(plan: Plan) -> str:
  rows = [(name, bytes_text(x)) for name, x in plan.parts.items() if x]
  for phase in plan.phases:
    for name, x in phase.memory.by_hand.items():
      # Several programs hold the same part; it is listed once.
      if name not in plan.parts and name not in dict(rows):
        rows.append((name, bytes_text(x)))
  return table(("by arithmetic, on each chip", "bytes"), rows)


def _memory(plan: Plan) -> str:
  rows = []
  for phase in plan.phases:
    memory = phase.memory
    if memory.refused is not None:
      middle = (bytes_text(memory.arguments_by_hand), "refused", "", "")
    else:
      middle = (
        bytes_text(memory.arguments_by_hand),
        bytes_text(memory.arguments),
        bytes_text(memory.temporaries),
        bytes_text(memory.beside),
      )
    rows.append((phase.name, *middle, bytes_text(memory.peak)))
  capacity = "" if plan.capacity is None else f" of {bytes_text(plan.capacity)}"
  return table(
    (
      "memory of each chip",
      "arguments by hand",
      "by compiler",
      "temporaries",
      "beside",
      f"peak{capacity}",
    ),
    rows,
  )


def _costs(plan: Plan) -> str:
  head = ["a training step, on each chip", "FLOP", "bytes"]
  if any(phase.times for phase in plan.phases):
    head += ["compute", "memory", "network", "least time", "bound"]
  rows = []
  for phase in plan.phases:
    if phase.costs is None:
      continue
    row = [phase.name, _si(phase.costs.flops), _si(phase.costs.num_bytes)]
    if times := phase.times:
      numbers = (times.compute, times.memory, times.network, times.least)
      row += [*map(seconds_text, numbers), times.bound]
    rows.append(row)
  return table(head, rows)


def _messages(plan: Plan) -> str:
  rows = [
    (phase.name, kind, _si(m.count), _si(m.num_bytes))
    for phase in plan.phases
    if phase.costs is not None
    for kind, m in sorted(phase.costs.by_kind().items())
  ]
  return table(("messages of", "kind", "count", "bytes"), rows) if rows else ""


def _verdict(plan: Plan) -> str:
  lines = []
  if plan.seconds is not None:
    run = plan.run
    tokens = run.num_sequences * run.completion_length
    training = next(p for p in plan.phases if p.name == TRAINING)
    assert training.times is not None
    lines.append(
      f"least time of a training step: {seconds_text(plan.seconds)}, of which "
      f"{seconds_text(training.times.least)} training; "
      f"{_si(tokens / plan.seconds)} tokens/s"
    )
  unknown = sorted(
    {
      name
      for phase in plan.phases
      if phase.costs
      for name in phase.costs.unknown_kernels
    }
  )
  if unknown:
    lines.append(f"kernels whose FLOPs are not counted: {', '.join(unknown)}")
  verdicts = {
    True: "It fits.",
    False: "It does not fit.",
    None: "Size and speed of the memory are not known here.",
  }
  lines.append(verdicts[plan.fits])
  suggestions = advice.advice(plan) or advice.hints(plan)
  return "\n".join([*lines, *(f"- {line}" for line in suggestions)])


def search_to_text(search: Search) -> str:
  """Returns the candidates, the best first, and the best as settings."""
  rows = []
  for candidate in search.ranked:
    (phase,) = candidate.plan.phases
    seconds = candidate.plan.seconds
    rows.append(
      (
        " ".join(candidate.overrides),
        bytes_text(phase.memory.peak),
        {True: "yes", False: "no", None: "?"}[candidate.plan.fits],
        "" if seconds is None else seconds_text(seconds),
        "" if phase.times is None else phase.times.bound,
        seconds_text(candidate.estimate.seconds),
      )
    )
  head = ("training step", "peak", "fits", "least time", "bound", "estimate")
  best = search.best
  verdict = (
    "No candidate fits; use more chips or shorter sequences."
    if best is None
    else f"best: {' '.join(best.overrides)}"
  )
  return "\n\n".join(
    (
      f"{search.hardware.name}: compiled {len(search.candidates)} of "
      f"{search.num_estimates} candidates, those with the least estimated time",
      table(head, rows),
      verdict,
    )
  )


def search_to_json(search: Search) -> str:
  """Returns the candidates as one JSON object, the best first."""
  best = search.best
  return json.dumps(
    {
      "hardware": search.hardware.name,
      "num_guesses": search.num_estimates,
      "best": None if best is None else best.overrides,
      "trials": [
        {
          "overrides": candidate.overrides,
          "guessed_seconds": candidate.estimate.seconds,
          "guessed_bytes": candidate.estimate.num_bytes,
          **to_dict(candidate.plan),
        }
        for candidate in search.ranked
      ],
    },
    indent=2,
  )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Aligns columns: the first to the left, the others to the right."""
  lines = [head, *rows]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(width) if i == 0 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )


def seconds_text(seconds: float) -> str:
  """Formats a time with a suitable unit."""
  if seconds >= 120:
    return f"{seconds / 60:.1f} min"
  return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1e3 * seconds:.2f} ms"


def bytes_text(num_bytes: float | None) -> str:
  """Formats bytes with a suitable unit; returns nothing for None."""
  if num_bytes is None:
    return ""
  for unit, size in _UNITS:
    if num_bytes >= size:
      return f"{num_bytes / size:.2f} {unit}"
  return f"{num_bytes:.0f} B"


def _count(number: int) -> str:
  if number >= 1e9:
    return f"{number / 1e9:.3g} billion"
  return f"{number / 1e6:.3g} million"


def _si(number: float) -> str:
  for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
    if number >= size:
      return f"{number / size:.3g} {unit}"
  return f"{number:,.0f}"
