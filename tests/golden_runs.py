"""Golden runs: what the commands compute on fixed seeds, as JSON.

`python -m tests.golden_runs` compares the numbers of today with those in
`tests/golden/runs.json` and names every difference; `--write` replaces them.
The numbers must agree exactly on the machine and the versions that wrote them,
and to a relative 1e-4 elsewhere. The suite runs one case of every objective.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import io
import itertools
import json
import math
import os
import pathlib
import platform
import sys
import tempfile
import warnings

from tests import paths

ROOT = paths.ROOT
GOLDEN = paths.GOLDEN / "runs.json"
QUICKSTART = "configs/calculator/quickstart.yaml"
SMALL = (
  "rollout.num_problems=4",
  "rollout.group_size=4",
  "train.num_steps=3",
  "data.num_train=64",
  "data.num_evaluation=8",
  "evaluation.num_problems=8",
  "evaluation.num_samples=2",
  "evaluation.pass_at=[1, 2]",
  "evaluation.every=0",
  "checkpoint.every=100",
  "logging.rollouts_every=0",
  "logging.tensorboard=false",
  # As was the default when the numbers were written.
  "optimizer.decay=all",
)
DEFAULT = ("configs/calculator/small_batches.yaml", "objective={kind: distil}")
RUNS = {
  "distil": DEFAULT,
  "distil_paper": (QUICKSTART,),
  "distil_lists": (
    QUICKSTART,
    "teacher.access=samples",
    "teacher.num_samples=2",
  ),
  "distil_cut": (*DEFAULT, "objective.top_k=8", "optimizer.micro_batch_size=2"),
  "distil_guard": (
    QUICKSTART,
    "teacher.guard={num_problems: 4}",
    "optimizer.mini_batch_size=8",
  ),
  "sdpo": (QUICKSTART, "objective={kind: sdpo}"),
  "sdpo_trust_region": (
    QUICKSTART,
    "objective={kind: sdpo}",
    "teacher.parameters=trust_region",
  ),
  "opsd": (QUICKSTART, "objective={kind: opsd, top_k: 16}"),
  "minillm": (QUICKSTART, "objective={kind: minillm}"),
  "grpo": (
    QUICKSTART,
    "objective={kind: grpo, kl_weight: 0.1}",
    "teacher.parameters=frozen",
    "optimizer.mini_batch_size=8",
  ),
  "sft": (
    "configs/calculator/base.yaml",
    "model={directory: 'embedded:calculator', remat: none}",
    "rollout.group_size=1",
  ),
}
_CLOCK = ("time/", "memory/")


def train(name: str, folder: pathlib.Path) -> dict:
  """Trains for three steps and returns what the run folder has."""
  config, *settings = RUNS[name]
  run = folder / name
  small = [s for s in SMALL if name != "sft" or "group_size" not in s]
  _command("train", config, *small, *settings, f"train.run_directory={run}")
  return {
    "metrics": _lines(run / "metrics.jsonl"),
    "evaluations": _lines(run / "evaluations.jsonl"),
  }


def run_all(folder: pathlib.Path) -> dict:
  """Runs every case and command in this process."""
  found = {name: train(name, folder) for name in RUNS}
  run = f"train.run_directory={folder / 'distil'}"
  small = (DEFAULT[0], *SMALL, DEFAULT[1], run)
  _command("export", small[0], str(folder / "exported"), *small[1:])
  found["export"] = hashlib.sha256(
    (folder / "exported/model.safetensors").read_bytes()
  ).hexdigest()
  asked = ("12 + 5 =", "3 * 4 - 2 =", "--num-samples=3", "--seed=7")
  answers = _command("generate", DEFAULT[0], *asked, "--json", run)
  found["generate"] = [json.loads(line) for line in answers.splitlines()]
  found["plan"] = json.loads(_command("plan", QUICKSTART, "--json"))
  found["compare"] = _compare(folder / "compare")
  return found


def _compare(folder: pathlib.Path) -> dict:
  small = (
    *("families.sparse.num_steps=2", "families.sparse.evaluate_every=1"),
    *("families.sparse.base_steps=2", "families.sparse.num_problems=2"),
    *("families.sparse.group_size=2", "families.sparse.network.width=8"),
    "families.sparse.network.num_heads=2",
    *("seeds=1", "num_held_out=4", "num_pass_problems=2", "pass_at=[1, 2]"),
    *("jobs=1", f"run_directory={folder}", "--family=sparse"),
  )
  _command("compare", "configs/comparison/smoke.yaml", *small, "--no-report")
  lines = (folder / "trials/sparse.jsonl").read_text().splitlines()
  kept = ("arm", "seed", "learning_rate", "before", "after", "curve")
  return {
    record["arm"]: {name: record[name] for name in kept}
    for record in map(json.loads, lines)
  }


def _command(*arguments: str) -> str:
  from distil_jax.cli.main import main as command

  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = command(arguments)
  if status:
    raise SystemExit(f"{arguments}: {err.getvalue()}")
  return out.getvalue()


def _lines(path: pathlib.Path) -> list[dict]:
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    {k: v for k, v in line.items() if not k.startswith(_CLOCK)}
    for line in lines
  ]


def machine() -> dict[str, str]:
  """Returns what decides the last bits of a number."""
  import jax

  text = pathlib.Path("/proc/cpuinfo").read_text()
  model = next(
    (x.split(":")[1].strip() for x in text.splitlines() if "model name" in x),
    platform.processor(),
  )
  jaxlib = importlib.metadata.version("jaxlib")
  return {"jax": jax.__version__, "jaxlib": jaxlib, "cpu": model}


def differences(old, new, *, tolerance: float, place: str = "") -> list[str]:
  """Returns a line for every number or text that differs."""
  if isinstance(old, dict) and isinstance(new, dict):
    pairs = [(k, old.get(k), new.get(k)) for k in sorted({*old, *new})]
  elif isinstance(old, list) and isinstance(new, list):
    pairs = list(
      itertools.zip_longest(range(max(len(old), len(new))), old, new)
    )
  elif isinstance(old, float | int) and isinstance(new, float | int):
    # What rounding alone makes, as mismatch/max, is near 0 and differs.
    close = math.isclose(old, new, rel_tol=tolerance, abs_tol=tolerance / 5)
    return [] if close else [f"{place}: {old} before, {new} now"]
  else:
    return [] if old == new else [f"{place}: {old} before, {new} now"]
  return [
    line
    for key, x, y in pairs
    for line in differences(x, y, tolerance=tolerance, place=f"{place}/{key}")
  ]


def compare(found: dict, tolerance: float | None = None) -> list[str]:
  """Returns how numbers of today differ from the golden ones."""
  golden = json.loads(GOLDEN.read_text())
  if tolerance is None:
    tolerance = 0.0 if golden["machine"] == machine() else 1e-4
  old = {name: golden["found"].get(name) for name in found}
  return differences(old, found, tolerance=tolerance)


def _main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--write", action="store_true")
  parser.add_argument("--only", nargs="+", choices=RUNS, metavar="RUN")
  parser.add_argument("--tolerance", type=float, metavar="X")
  arguments = parser.parse_args()
  os.chdir(ROOT)
  os.environ["JAX_PLATFORMS"] = "cpu"
  warnings.simplefilter("ignore")
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    if arguments.only:
      found = {run: train(run, folder) for run in arguments.only}
    else:
      found = run_all(folder)
  found = json.loads(json.dumps(found))
  if arguments.write:
    record = {"machine": machine(), "found": found}
    GOLDEN.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return 0
  lines = compare(found, arguments.tolerance)
  print("\n".join(lines) or "the numbers are those of tests/golden/runs.json")
  return int(bool(lines))


if __name__ == "__main__":
  sys.exit(_main())
