"""Shows runs of a pretrained model that learns to write with given words.

  python -m benchmarks.writing FOLDER... [--picture smollm2.png]

Reads what `distil-jax train configs/writing/smollm2.yaml` wrote into its run
folders, one run each; prints a table in Markdown and draws held-out accuracy,
reward and length of all of them.
"""

import argparse
import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import figure as mpl_figure
from matplotlib.backends import backend_agg

from distil_jax.training.logging import run_folder

# The colors of Okabe and Ito.
_COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_PANELS = (
  ("evaluations", "avg@4", "held-out avg@4"),
  ("metrics", "reward", "reward of the step's samples"),
  ("metrics", "completion_length", "tokens of the step's samples"),
)
_COLUMNS = (
  "run",
  "steps",
  "avg@4, %",
  "pass@4, %",
  "cut off, %",
  "tokens",
  "median seconds: sampling",
  "update",
)


@dataclasses.dataclass(frozen=True)
class Run:
  """Holds what a run has written.

  Attributes:
    name: Name of its folder.
    metrics: Lines of training steps.
    evaluations: Lines of evaluations; the first is that of the base model.
  """

  name: str
  metrics: Sequence[Mapping[str, Any]]
  evaluations: Sequence[Mapping[str, Any]]


def read(folder: pathlib.Path) -> Run:
  """Reads a run folder.

  Raises:
    SystemExit: It has no evaluation or no step.
  """
  metrics = run_folder.read_lines(folder / run_folder.METRICS)
  evaluations = run_folder.read_lines(folder / run_folder.EVALUATIONS)
  if not metrics or not evaluations:
    raise SystemExit(f"{folder} has no steps or no evaluations; train first")
  return Run(folder.resolve().name, metrics, evaluations)


def table(runs: Sequence[Run]) -> str:
  """Returns the table; an arrow leads from the base model to the last step."""
  lines = [" | ".join(_COLUMNS), " | ".join("---" for _ in _COLUMNS)]
  for run in runs:
    first, last = run.evaluations[0], run.evaluations[-1]
    changes = [
      f"{scale * first[key]:.1f} → {scale * last[key]:.1f}"
      for key, scale in (
        ("avg@4", 100),
        ("pass@4", 100),
        ("cut_off", 100),
        ("completion_length", 1),
      )
    ]
    # The first step compiles.
    timed = run.metrics[1:] or run.metrics
    times = [
      f"{statistics.median(line[key] for line in timed):.0f}"
      for key in ("time/rollout_seconds", "time/update_seconds")
    ]
    cells = [f"`{run.name}`", str(last["step"]), *changes, *times]
    lines.append(" | ".join(cells))
  return "\n".join(f"| {line} |" for line in lines)


def draw(runs: Sequence[Run]) -> mpl_figure.Figure:
  """Draws a panel for each measure and a line for each run."""
  figure = mpl_figure.Figure(figsize=(12, 3.8), layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  panels = figure.subplots(1, len(_PANELS), squeeze=False)[0]
  for axes, (source, key, title) in zip(panels, _PANELS, strict=True):
    for run, color in zip(runs, _COLORS, strict=False):
      lines = getattr(run, source)
      axes.plot(
        [line["step"] for line in lines],
        [line[key] for line in lines],
        color=color,
        marker="o",
        markersize=4,
        label=run.name,
      )
    axes.set_title(title, loc="left", size=11)
    axes.set_xlabel("training step")
    axes.set_ylim(bottom=0, top=1 if key != "completion_length" else None)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
      axes.spines[side].set_visible(False)
  panels[0].legend(fontsize=9, frameon=False, loc="lower right")
  return figure


def main() -> None:
  """Prints the table of the runs, and draws their curves."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("folders", type=pathlib.Path, nargs="+")
  parser.add_argument("--picture", type=pathlib.Path)
  arguments = parser.parse_args()
  if len(arguments.folders) > len(_COLORS):
    parser.error(f"at most {len(_COLORS)} runs have a color each")
  runs = [read(folder) for folder in arguments.folders]
  print(table(runs))
  if arguments.picture:
    draw(runs).savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
  main()
