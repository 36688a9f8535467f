"""Plans training on TPU slices by compiling for them; needs no TPU.

  python -m benchmarks.plans                 # what is missing; hours on a core
  python -m benchmarks.plans --only 8b_v5p_16
  python -m benchmarks.plans --report   # the tables of docs/results/scaling.md

Needs `pip install '.[plan]'`. Each case is kept in
benchmarks/results/plans.json as soon as it is compiled, and compiled again only
when it is named with --only.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import machine
from distil_jax import config as configs
from distil_jax.planning import hardware as planning_hardware
from distil_jax.planning import planner as planning_planner
from distil_jax.planning import report, results
from distil_jax.training.logging.progress import Progress

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/plans.json"
DOCUMENT = ROOT / "docs/results/scaling.md"
SCIENCE = ROOT / "configs/science/qwen3_8b.yaml"
GIB = 2.0**30

_ACTIVITIES = {
  results.PREFILL: "prompts are read",
  results.CACHE_GROWTH: "KV caches grow",
  results.SAMPLING: "tokens are chosen",
  results.TRAINING: "learning",
}
# Weak scaling: problems per chip; the micro-batch has one sequence per chip.
_PROBLEMS_PER_CHIP = 4


def _sizes(num_problems: int, chips: int, **settings: Any) -> list[str]:
  return [
    f"rollout.num_problems={num_problems}",
    f"evaluation.num_problems={max(64, chips)}",
    f"optimizer.micro_batch_size={chips}",
    *(f"{name}={value}" for name, value in settings.items()),
  ]


def _weak(shape: str, topology: str, chips: int, *more: str) -> dict[str, Any]:
  return {
    "shape": shape,
    "topology": topology,
    "overrides": [*_sizes(_PROBLEMS_PER_CHIP * chips, chips), *more],
    "programs": "training",
  }


def _science(
  topology: str, *overrides: str, phases: str = "all"
) -> dict[str, Any]:
  return {
    "shape": "8b",
    "topology": topology,
    "overrides": list(overrides),
    "programs": phases,
  }


# Each chip holds multiples of 128 columns of widths 4096 and 5120.
_COPIES = ("mesh.data=64", "mesh.fsdp=8")
_TENSOR = (
  "mesh.data=8", "mesh.fsdp=8", "mesh.tensor=8",
  "optimizer.micro_batch_size=256",
)  # fmt: skip
_HEADS = "rollout.mesh={data: 1, fsdp: 1, tensor: 8}"
CASES: dict[str, dict[str, Any]] = {
  "8b_v5p_16": _science("v5p-16"),
  "8b_v5p_16_heads": _science("v5p-16", _HEADS, phases="sampling"),
  "8b_v5p_8": _science(
    "v5p-8", "rollout.num_slots=64", "optimizer.micro_batch_size=4"
  ),
  "8b_v6e_16": _science(
    "v6e-16", "optimizer.micro_batch_size=16", "rollout.num_slots=128"
  ),
  "8b_v6e_8": _science("v6e-8", phases="training"),
  "weak_8b_4": _weak("8b", "v5p-8", 4),
  "weak_8b_16": _weak("8b", "v5p-32", 16),
  "weak_8b_64": _weak("8b", "v5p-128", 64),
  "weak_8b_64_copies": _weak(
    "8b", "v5p-128", 64, "mesh.data=4", "mesh.fsdp=16"
  ),
  "weak_8b_512": _weak("8b", "v5p-1024", 512, *_COPIES),
  "weak_32b_16": _weak("32b", "v5p-32", 16),
  "weak_32b_64": _weak("32b", "v5p-128", 64),
  "weak_32b_512": _weak("32b", "v5p-1024", 512, *_TENSOR),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", action="append", choices=CASES, default=[])
  parser.add_argument("--report", action="store_true")
  options = parser.parse_args()
  found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
  if not options.report:
    wanted = options.only or [name for name in CASES if name not in found]
    for name in wanted:
      found[name] = _run(CASES[name])
      RESULTS.write_text(json.dumps(found, indent=1) + "\n")
  _write(found)


def _run(case: dict[str, Any]) -> dict[str, Any]:
  """Compiles one case."""
  start = time.monotonic()
  config = configs.load(SCIENCE, case["overrides"])
  hardware = planning_hardware.find_hardware(case["topology"])
  shape = ROOT / f"configs/shapes/qwen3_{case['shape']}.json"
  with Progress(None) as progress:
    planner = planning_planner.Planner(
      config,
      hardware,
      planning_planner.load_network(config, str(shape)),
      progress,
    )
    phases = []
    if case["programs"] != "training":
      phases += planner.sampling_phases()
    if case["programs"] != "sampling":
      phases.append(planner.training_phase())
  return {
    **case,
    **report.to_dict(planner.build_plan(phases)),
    "seconds_to_compile": round(time.monotonic() - start),
    "made_with": machine.description(),
  }


def _write(found: dict[str, Any]) -> None:
  """Writes the tables into the document, between their markers."""
  text = DOCUMENT.read_text()
  tables = {
    "summary": _summary(found),
    "cases": _cases(found),
    "fits": _fits(found),
    "arithmetic": _arithmetic(found),
    "costs": _costs(found),
    "messages": _messages(found),
    "weak": _weak_scaling(found),
  }
  for name, table in tables.items():
    begin, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    text = f"{head}{begin}\n{table}\n{end}{tail}"
  DOCUMENT.write_text(text)


def _summary(found: dict[str, Any]) -> str:
  lines = []
  for name, case in _science_cases(found):
    peak, program = max((p["peak_bytes"], p["name"]) for p in case["phases"])
    verdict = "fits" if peak <= case["memory_bytes"] else "does **not** fit"
    lines.append(
      f"* {case['hardware']}, {case['num_chips']} chips (`{name}`): {verdict}; "
      f"at the most {_gib(peak)} of {_gib(case['memory_bytes'])} GiB, while "
      f"{_ACTIVITIES[program]}"
    )
  return "\n".join(lines)


def _cases(found: dict[str, Any]) -> str:
  rows = []
  for name, case in _science_cases(found):
    changed = " ".join(f"`{x}`" for x in case["overrides"]) or "none"
    rows.append((name, changed, case["num_slots"], case["micro_batch_size"]))
  return _table(("case", "settings", "slots", "micro-batch"), rows)


def _fits(found: dict[str, Any]) -> str:
  rows = [
    (
      name,
      case["hardware"],
      _axes(case["mesh"]),
      phase["name"],
      _gib(phase["argument_bytes"]),
      _gib(phase["temporary_bytes"]),
      _gib(phase["bytes_beside"]),
      _gib(phase["peak_bytes"]),
      _gib(case["memory_bytes"]),
      "yes" if phase["peak_bytes"] <= case["memory_bytes"] else "**no**",
    )
    for name, case in _science_cases(found)
    for phase in case["phases"]
  ]
  return _table(
    (
      "case", "slice", "mesh", "program", "arguments", "temporaries", "beside",
      "peak", "of", "fits",
    ),
    rows,
  )  # fmt: skip


def _arithmetic(found: dict[str, Any]) -> str:
  rows = []
  for name, case in _science_cases(found):
    for phase in case["phases"]:
      by_hand = phase["arguments_by_hand"]
      total, counted = sum(by_hand.values()), phase["argument_bytes"]
      parts = " + ".join(
        f"{_gib(x)} {part}" for part, x in by_hand.items() if x >= 0.005 * GIB
      )
      rows.append(
        (
          name,
          phase["name"],
          parts,
          _gib(total),
          _gib(counted),
          "" if counted is None else f"{100 * (total / counted - 1):+.1f} %",
        )
      )
  return _table(
    ("case", "program", "by hand, GiB a chip", "sum", "compiler", "off by"),
    rows,
  )


def _costs(found: dict[str, Any]) -> str:
  rows = [
    (
      name,
      phase["name"],
      f"{phase['flops'] / 1e15:.3g}",
      f"{phase['bytes_accessed'] / 1e12:.3g}",
      *(f"{phase['seconds'][k]:.3g}" for k in ("compute", "memory", "network")),
      phase["bound"],
    )
    for name, case in _science_cases(found)
    for phase in case["phases"]
    if phase["seconds"]
  ]
  return _table(
    (
      "case", "program", "PFLOP", "TB", "compute, s", "memory, s", "network, s",
      "bound",
    ),
    rows,
  )  # fmt: skip


def _messages(found: dict[str, Any]) -> str:
  rows = [
    (
      name,
      phase["name"],
      kind,
      f"{m['count']:,.0f}",
      f"{m['bytes'] / 1e9:,.3g}",
    )
    for name, case in _science_cases(found)
    for phase in case["phases"]
    for kind, m in sorted((phase["messages"] or {}).items())
  ]
  return _table(("case", "program", "kind", "count", "GB a chip"), rows)


def _weak_scaling(found: dict[str, Any]) -> str:
  rows = []
  for case in sorted(
    found.values(), key=lambda c: (len(c["shape"]), c["shape"], c["num_chips"])
  ):
    is_even = (
      case["num_sequences"] == 8 * _PROBLEMS_PER_CHIP * case["num_chips"]
    )
    training = [p for p in case["phases"] if p["name"] == results.TRAINING]
    if not is_even or not training or "v5p" not in case["hardware"]:
      continue
    (phase,) = training
    times = phase["seconds"] or dict.fromkeys(
      ("compute", "memory", "network"), float("nan")
    )
    rows.append(
      (
        case["shape"].upper(),
        case["num_chips"],
        _axes(case["mesh"]),
        case["num_sequences"],
        _gib(phase["peak_bytes"]),
        "yes" if phase["peak_bytes"] <= case["memory_bytes"] else "**no**",
        *(f"{times[k]:.3g}" for k in ("compute", "memory", "network")),
        phase["bound"],
      )
    )
  return _table(
    (
      "model", "v5p chips", "mesh", "sequences", "peak, GiB", "fits",
      "compute, s", "memory, s", "network, s", "bound",
    ),
    rows,
  )  # fmt: skip


def _science_cases(found: dict[str, Any]) -> list[tuple[str, Any]]:
  return [
    (name, case) for name, case in found.items() if not name.startswith("weak")
  ]


def _axes(mesh: dict[str, int]) -> str:
  axes = [f"{name} {size}" for name, size in mesh.items() if size > 1]
  return ", ".join(axes) or "1"


def _gib(num_bytes: float | None) -> str:
  return "–" if num_bytes is None else f"{num_bytes / GIB:.2f}"


def _table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
  main()
