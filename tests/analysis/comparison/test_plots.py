"""Which pictures are drawn, and of what."""

import pytest

from distil_jax import config as configs
from distil_jax.analysis.comparison import plots, results
from tests.analysis.comparison.made_up import comparison, trials

FIGURE = {
  "families": ["early", "sparse"],
  "arms": ["less", "mine"],
  "measures": ["avg", "teacher", "entropy"],
}


def made(tmp_path, **figure):
  return comparison(
    run_directory=str(tmp_path), figures={"why": {**FIGURE, **figure}}
  )


def drawn(draw, tmp_path, done):
  comparison = made(tmp_path)
  return draw(comparison, results.collect(comparison, done))


def test_a_figure_has_a_row_a_family_and_a_column_a_measure(tmp_path):
  done = trials("sparse", "mine", [0.5, 0.7])
  done |= trials("sparse", "less", [0.25])
  done |= trials("sparse", "grpo", [1.0])
  done |= trials("early", "mine", [1.0])
  panels = drawn(plots.draw, tmp_path, done)["figures/why.png"].axes
  assert len(panels) == 6
  assert [panel.get_ylabel() for panel in panels[::3]] == ["early", "sparse"]
  assert "avg@4" in panels[0].get_title()
  lines = [[line.get_label() for line in panel.lines] for panel in panels]
  assert lines == 3 * [["mine"]] + 3 * [["less", "mine"]]
  less, mine = panels[3].lines
  assert list(mine.get_xdata()) == [0.008, 0.016]  # thousands of rollouts
  assert list(mine.get_ydata()) == [0.0, pytest.approx(0.6)]
  assert list(less.get_ydata()) == [0.0, 0.25]
  assert mine.get_color() != less.get_color()


def test_nothing_is_drawn_of_nothing(tmp_path):
  assert drawn(plots.save, tmp_path, {}) == []
  done = trials("sparse", "grpo", [1.0])
  names = {path.name for path in drawn(plots.save, tmp_path, done)}
  assert names == {"accuracy.png", "time.png", "measures.png"}
  done = trials("sparse", "mine", [1.0])
  *_, path = drawn(plots.save, tmp_path, done)
  assert path == tmp_path / "figures/why.png"
  assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
  ("figure", "words"),
  [
    ({"families": ["spars"]}, "figures.why.families"),
    ({"arms": ["mien"]}, "figures.why.arms"),
    ({"measures": ["lenght"]}, "figures.why.measures"),
  ],
)
def test_names_are_checked(tmp_path, figure, words):
  with pytest.raises((configs.ConfigError, ValueError), match=words):
    made(tmp_path, **figure)
