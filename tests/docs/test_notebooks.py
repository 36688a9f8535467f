"""The notebooks: they run as they stand, and are stored with what they show."""

import json
import pathlib

import pytest
from matplotlib import pyplot

from tests.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 400_000

each_notebook = pytest.mark.parametrize(
  "path", NOTEBOOKS, ids=lambda path: path.stem
)


@pytest.fixture
def drawing_board():
  """No window, and no figure before or after."""
  pyplot.switch_backend("Agg")
  pyplot.close("all")
  yield pyplot
  pyplot.close("all")


def cells(path, kind=None):
  return [
    cell
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    if kind in (None, cell["cell_type"])
  ]


def outputs(path):
  return [output for cell in cells(path, "code") for output in cell["outputs"]]


def num_images(path):
  return sum("image/png" in output.get("data", {}) for output in outputs(path))


def test_there_are_notebooks():
  # Without them, the tests below would be skipped and nobody would notice.
  assert {path.stem for path in NOTEBOOKS} >= {
    "1_future_credit_by_hand",
    "2_why_forward_cross_entropy",
    "3_one_training_step",
    "4_reading_a_run",
    "5_your_own_environment",
    "6_on_gpu_or_tpu",
    "7_a_real_model",
    "inspect_losses",
  }


@each_notebook
def test_runs_from_top_to_bottom_and_draws(path, drawing_board, monkeypatch):
  # A real model takes ten times as long, and `make real` asks it more.
  monkeypatch.delenv("DISTIL_JAX_REAL_MODEL", raising=False)
  program = "\n\n".join("".join(c["source"]) for c in cells(path, "code"))

  exec(compile(program, str(path), "exec"), {"__name__": "__main__"})

  figures = [drawing_board.figure(n) for n in drawing_board.get_fignums()]
  assert len(figures) == num_images(path) > 0
  assert all(axes.has_data() for figure in figures for axes in figure.axes)


@each_notebook
def test_no_cell_is_empty(path):
  assert all("".join(cell["source"]).strip() for cell in cells(path))


@each_notebook
def test_is_stored_as_one_run_left_it(path):
  counts = [cell["execution_count"] for cell in cells(path, "code")]
  assert counts == list(range(1, len(counts) + 1))
  assert outputs(path)
  assert path.stat().st_size < MAX_BYTES


@each_notebook
def test_shows_no_warning_error_or_path_of_a_machine(path):
  for output in outputs(path):
    assert output["output_type"] in ("stream", "display_data", "execute_result")
    assert output.get("name") != "stderr"
    text = "".join(output.get("text", []))
    assert str(pathlib.Path.home()) not in text
    assert "site-packages" not in text
