"""Says what a run keeps for each parameter, and where it fits; needs no TPU.

  python -m benchmarks.fits                  # state from shapes: a minute
  python -m benchmarks.fits --compile NAME   # adds a planned peak: minutes
  python -m benchmarks.fits --report         # the table of the guide

Needs `pip install '.[plan]'`. State is counted from shapes. The peak of a chip
is the compiler's for the training step; sampling may need more, which
`distil-jax plan` says. Figures are kept in benchmarks/results/fits.json.
"""

import argparse
import dataclasses
import json
from typing import Any

import jax

from benchmarks import machine
from benchmarks.plans import GIB, ROOT
from distil_jax import config as configs
from distil_jax.planning import abstract_inputs, memory, report
from distil_jax.planning import hardware as planning_hardware
from distil_jax.planning import planner as planning_planner
from distil_jax.training import low_precision
from distil_jax.training.logging.progress import Progress

RESULTS = ROOT / "benchmarks/results/fits.json"
DOCUMENT = ROOT / "docs/guides/memory_and_planning.md"
# Bytes of the largest single device that the table asks about.
_DEVICE = 141e9
_COLUMNS = (
  "model", "settings", "parameters", "optimizer", "copy", "teacher",
  "gradient", "sampling", "learning needs", "sampling needs",
  "left of 141 GB", "slice", "planned peak of a chip",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
  """A run, and the slice that its training step is compiled for."""

  model: str
  config: str
  shape: str
  topology: str
  shown: tuple[str, ...] = ()
  sizes: tuple[str, ...] = ()


_BFLOAT16 = "model.param_dtype=bfloat16"
_ADAPTERS = (_BFLOAT16, "model.lora={rank: 64, alpha: 128}")
CASES = {
  "8b": Case(
    "8B, all weights",
    "science/qwen3_8b",
    "qwen3_8b",
    "v5p-8",
    sizes=("optimizer.micro_batch_size=4", "rollout.num_slots=64"),
  ),
  "8b_rounded": Case(
    "8B, all weights",
    "science/qwen3_8b",
    "qwen3_8b",
    "v5p-8",
    shown=(
      _BFLOAT16,
      "optimizer.master_dtype=null",
      "optimizer.stochastic_rounding=true",
      "optimizer.kind=adafactor",
    ),
    sizes=("optimizer.micro_batch_size=4", "rollout.num_slots=64"),
  ),
  "8b_adapters": Case(
    "8B, adapters", "math/qwen3_8b", "qwen3_8b", "v6e-4", shown=_ADAPTERS
  ),
  "32b_adapters": Case(
    "32B, adapters",
    "math/qwen3_8b",
    "qwen3_32b",
    "v5p-8",
    shown=_ADAPTERS,
  ),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--compile", action="append", choices=CASES, default=[])
  parser.add_argument("--report", action="store_true")
  options = parser.parse_args()
  found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
  if not options.report:
    for name in options.compile or CASES:
      found[name] = found.get(name, {}) | _run(
        CASES[name], compiles=name in options.compile
      )
      RESULTS.write_text(json.dumps(found, indent=1) + "\n")
  _write(found)


def _run(case: Case, *, compiles: bool) -> dict[str, Any]:
  """Counts the state of a run, and plans its training step if asked to."""
  config = configs.load(
    ROOT / f"configs/{case.config}.yaml", [*case.shown, *case.sizes]
  )
  hardware = planning_hardware.find_hardware(case.topology)
  network = planning_planner.load_network(
    config, str(ROOT / f"configs/shapes/{case.shape}.json")
  )
  with Progress(None) as progress:
    planner = planning_planner.Planner(config, hardware, network, progress)
    phases = [planner.training_phase()] if compiles else []
  plan = planner.build_plan(phases)
  state = planner.state
  masters = _num_bytes(low_precision.full_params(None, state.opt_state))
  found: dict[str, Any] = {
    "num_params": plan.num_params,
    "bytes": {
      "parameters": _num_bytes(state.student_params),
      "optimizer": _num_bytes(state.opt_state) - masters,
      "copy": masters,
      "teacher": _num_bytes(state.teacher_params),
      # In float32, whatever the type of the parameters.
      "gradient": 4.0 * sum(x.size for x in jax.tree.leaves(state.params)),
      "sampling": _sampling_bytes(planner),
    },
  }
  if compiles:
    found["plan"] = report.to_dict(plan)
    found["made_with"] = machine.description()
  return found


def _sampling_bytes(planner: planning_planner.Planner) -> float:
  """Returns the bytes of the weights that are made to sample."""
  weights = abstract_inputs.weights(
    planner.sampling_graphdef, planner.sampling_shapes, planner.rollout_mesh
  )
  return _num_bytes(
    [
      x
      for name, x in weights.items()
      if name == "layers" or x.dtype != planner.shapes[name].dtype
    ]
  )


def _num_bytes(tree: Any) -> float:
  """Returns the bytes of a tree on one device that holds all of it."""
  whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
  return memory.tree_bytes(whole)


def _write(found: dict[str, Any]) -> None:
  """Writes the table into the guide, between its markers."""
  text = DOCUMENT.read_text()
  begin, end = "<!-- table: fits -->", "<!-- end: fits -->"
  head, rest = text.split(begin)
  _, tail = rest.split(end)
  rows = [_row(CASES[name], found[name]) for name in CASES if name in found]
  lines = [_COLUMNS, ["---"] * len(_COLUMNS), *rows]
  table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
  DOCUMENT.write_text(f"{head}{begin}\n{table}\n{end}{tail}")


def _row(case: Case, found: dict[str, Any]) -> list[str]:
  parts, num_params = found["bytes"], found["num_params"]
  state = sum(parts[x] for x in ("parameters", "optimizer", "copy", "teacher"))
  needs = [state + parts["gradient"], state + parts["sampling"]]
  peak = "not compiled"
  if "plan" in found:
    plan = found["plan"]
    (phase,) = plan["phases"]
    peak = (
      f"{phase['peak_bytes'] / GIB:.1f} of {plan['memory_bytes'] / GIB:.0f}"
    )
    peak += " GiB"
  left = (_DEVICE - max(needs)) / GIB
  return [
    case.model,
    " ".join(f"`{x}`" for x in case.shown) or "as it is",
    *(f"{x / num_params:.2f}" for x in parts.values()),
    *(f"{x / GIB:.0f} GiB" for x in needs),
    "does not fit" if left < 0 else f"{left:.0f} GiB",
    case.topology,
    peak,
  ]


if __name__ == "__main__":
  main()
