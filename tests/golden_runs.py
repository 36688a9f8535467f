"""Golden runs: what the commands compute on fixed seeds, as JSON.

`python tests/golden_runs.py` compares the numbers of today with those in
`tests/golden/runs.json`; `--write` replaces them. The numbers are compared
exactly on the machine and the versions that wrote them, and to a relative
1e-4 elsewhere.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import pathlib
import platform
import sys
import tempfile
import warnings

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests/golden/runs.json"
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
_CLOCK = ("seconds", "tokens_per_second")


def main(folder: pathlib.Path) -> dict:
  """Runs everything in this process, in a folder of its own."""
  found = {}
  for name, (config, *settings) in RUNS.items():
    run = folder / name
    small = [s for s in SMALL if name != "sft" or "group_size" not in s]
    _command("train", config, *small, *settings, f"train.run_directory={run}")
    found[name] = {
      "metrics": _lines(run / "metrics.jsonl"),
      "evaluations": _lines(run / "evaluations.jsonl"),
    }
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
    {k: v for k, v in line.items() if not k.endswith(_CLOCK)} for line in lines
  ]


def machine() -> dict[str, str]:
  """Returns what decides the last bits of a number."""
  import jax
  import jaxlib

  text = pathlib.Path("/proc/cpuinfo").read_text()
  model = next(
    (x.split(":")[1].strip() for x in text.splitlines() if "model name" in x),
    platform.processor(),
  )
  return {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "cpu": model}


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--write", action="store_true")
  parser.add_argument("--out", type=pathlib.Path)
  arguments = parser.parse_args()
  os.chdir(ROOT)
  os.environ["JAX_PLATFORMS"] = "cpu"
  sys.path.insert(0, str(ROOT))
  warnings.simplefilter("ignore")
  with tempfile.TemporaryDirectory() as name:
    result = {"machine": None, "found": main(pathlib.Path(name))}
  result["machine"] = machine()
  text = json.dumps(result, indent=1, sort_keys=True) + "\n"
  if arguments.out:
    arguments.out.write_text(text)
  elif arguments.write:
    GOLDEN.write_text(text)
  elif json.loads(GOLDEN.read_text()) != json.loads(text):
    raise SystemExit("the numbers differ from tests/golden/runs.json")
