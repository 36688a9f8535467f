"""Plans the training step of Qwen3-8B with each optimizer; needs no TPU.

  python -m benchmarks.optimizer_memory   # prints the table of the guide

Needs `pip install '.[plan]'`. State is counted from shapes; the peak of a chip
is the compiler's, for configs/science/qwen3_8b.yaml on v5p-16. Each row is
compiled in one to three minutes on an idle core.
"""

import argparse

from benchmarks.plans import GIB, ROOT, SCIENCE
from distil_jax import config as configs
from distil_jax.planning import hardware as planning_hardware
from distil_jax.planning import planner as planning_planner
from distil_jax.training.logging.progress import Progress

_BFLOAT16 = "model.param_dtype=bfloat16"
CASES = (
  (),
  ("optimizer.kind=lion",),
  ("optimizer.kind=adafactor",),
  (_BFLOAT16,),
  (
    _BFLOAT16,
    "optimizer.master_dtype=null",
    "optimizer.stochastic_rounding=true",
    "optimizer.kind=adafactor",
  ),
)
_SHAPE = ROOT / "configs/shapes/qwen3_8b.json"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--topology", default="v5p-16")
  hardware = planning_hardware.find_hardware(parser.parse_args().topology)
  print("| settings | parameters | optimizer | copy | teacher | sum | peak |")
  print("| --- | --- | --- | --- | --- | --- | --- |")
  for case in CASES:
    config = configs.load(SCIENCE, case)
    with Progress(None) as progress:
      planner = planning_planner.Planner(
        config,
        hardware,
        planning_planner.load_network(config, str(_SHAPE)),
        progress,
      )
      plan = planner.build_plan([planner.training_phase()])
    share = len(hardware.devices) / plan.num_params
    names = ("parameters", "optimizer", planning_planner.MASTERS, "teacher")
    sizes = [share * plan.parts.get(name, 0.0) for name in names]
    sizes.append(sum(sizes))
    peak = plan.phases[0].memory.peak / GIB
    settings = " ".join(f"`{x}`" for x in case) or "as it is"
    cells = [settings, *(f"{x:.2f}" for x in sizes), f"{peak:.1f} GiB"]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  main()
