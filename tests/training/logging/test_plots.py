"""The picture of a run: what is drawn, and that it never fails to be."""

import math

import numpy as np
import pytest
from matplotlib import image, pyplot

from distil_jax.training.logging import plots, run_folder, series, tables


def metrics(num_steps, names=("reward", "cost", "completion_length")):
  return [
    {"step": step} | {name: 0.5 + 0.4 * math.sin(step) for name in names}
    for step in range(1, num_steps + 1)
  ]


def evaluations(*steps):
  return [
    {"step": step, "avg@4": 0.25, "pass@1": 0.25, "pass@16": 1.0, "pass@4": 0.5}
    for step in steps
  ]


def legends(picture):
  return [
    [text.get_text() for text in axes.get_legend().get_texts()]
    for axes in picture.axes
    if axes.get_legend()
  ]


def y_labels(picture):
  return [axes.get_ylabel() for axes in picture.axes]


def test_both_panels_of_a_run():
  picture = plots.draw(metrics(10), evaluations(0, 10), title="run")
  assert legends(picture) == [
    [
      "reward",
      "held-out avg@4 25.0 → 25.0 %",  # and not pass@1, its equal
      "held-out pass@4 50.0 → 50.0 %",
      "held-out pass@16 100.0 → 100.0 %",
    ],
    ["cost", "completion length"],
  ]
  assert y_labels(picture) == [
    "reward, held-out accuracy (0 to 1)",
    "cost (nats per token)",
    "completion length (tokens)",
  ]


def test_supervised_run_shows_its_loss_beside_the_accuracy():
  picture = plots.draw(metrics(10, ["loss"]), evaluations(0), title="run")
  assert y_labels(picture) == [
    "loss (nats per token)",
    "held-out accuracy (0 to 1)",
  ]
  assert legends(picture)[0][:2] == ["loss", "held-out avg@4 25.0 %"]


@pytest.mark.parametrize("num_steps", [1, 10, 200])
@pytest.mark.parametrize("evaluated", [(), (0, 5)])
def test_legends_and_axes_have_room(num_steps, evaluated):
  picture = plots.draw(
    metrics(num_steps), evaluations(*evaluated), title="a run with a $name$"
  )
  picture.canvas.draw()
  width, height = picture.bbox.size
  for axes in picture.axes:
    panel = axes.get_window_extent()
    assert panel.width > 0.75 * width
    if axes.get_legend():
      legend = axes.get_legend().get_window_extent()
      assert legend.y0 >= panel.y1  # above the data
      assert legend.x1 <= width
      assert legend.y1 <= height


def test_values_that_are_missing_or_null_leave_gaps():
  lines = [
    {"step": 1, "reward": 0.5},
    {"step": 2, "reward": None},
    {"step": 3},
    {"step": 4, "reward": 0.75},
  ]
  picture = plots.draw(lines, [], title="run")
  (line,) = picture.axes[0].get_lines()
  np.testing.assert_array_equal(line.get_xdata(), [1, 4])
  np.testing.assert_array_equal(line.get_ydata(), [0.5, 0.75])
  assert len(picture.axes) == 1  # there is neither cost nor length


def test_small_rewards_are_not_a_flat_line():
  lines = [{"step": step, "reward": 0.001 * step} for step in range(1, 21)]
  picture = plots.draw(lines, [], title="run")
  assert picture.axes[0].get_ylim()[1] < 0.03


def test_running_mean_by_hand():
  values = np.array([1.0, 2.0, 6.0, 4.0])
  np.testing.assert_allclose(
    series.running_mean(values, 3), [1.5, 3.0, 4.0, 5.0]
  )


def test_plot_writes_a_picture_from_the_files_of_a_resumed_run(tmp_path):
  for resume_step, first in ((None, 1), (5, 6)):
    folder = run_folder.RunFolder(tmp_path, tensorboard=False)
    folder.start("", resume_step, device_kind="cpu", num_devices=1)
    for step in range(first, first + 8):
      folder.metrics(step, {"reward": step / 20, "cost": math.nan})
  folder.evaluation(0, {"avg@4": 0.5})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 14, "rew')  # a run under way
  path = plots.plot(tmp_path)
  assert path == tmp_path / "learning.png"
  pixels = image.imread(path)
  assert pixels.shape[1] == 1350
  assert pixels.std() > 0.01
  assert list(tmp_path.glob(".*")) == []


def test_nothing_to_plot_is_said(tmp_path):
  with pytest.raises(tables.ReportError, match="nothing to plot in"):
    plots.plot(tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_no_figure_is_left_with_pyplot():
  plots.draw(metrics(3), [], title="run")
  assert pyplot.get_fignums() == []
