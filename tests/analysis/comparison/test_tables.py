"""What stands in the tables, cell by cell."""

from distil_jax.analysis.comparison import markdown, results, statistics, tables
from tests.analysis.comparison import made_up
from tests.analysis.comparison.made_up import rows, trials


def made_of(table, done, *arguments, **changed):
  """A table of made-up trials."""
  made = made_up.comparison(**changed)
  return table(made, results.collect(made, done), *arguments)


def test_the_accuracy_table():
  done = trials("sparse", "grpo", [0.4, 0.5, 0.6])  # ± 5.8
  done |= trials("sparse", "mine", [0.8, 0.9, 1.0])
  done |= trials("early", "grpo", [0.85, 0.85])
  text = made_of(tables.accuracies, done)
  assert rows(text) == {
    "arm": ["sparse", "early", "in bold"],
    "grpo": ["50.0 ± 5.8", "**85.0 ± 0.0**", "1 of 2"],
    "mine": ["**90.0 ± 5.8**", "–", "1 of 1"],
  }
  assert "Seeds still missing: grpo in early (2 of 3)." in text
  curve = made_of(tables.accuracies, done, statistics.mean_accuracy)
  assert rows(curve)["mine"][0] == "**45.0 ± 2.9**"


def test_ties_are_bold_too():
  done = trials("sparse", "grpo", [0.7, 0.9]) | trials(
    "sparse", "mine", [0.8, 1.0]
  )
  text = made_of(tables.accuracies, done, seeds=2)
  shown = rows(text)
  assert shown["grpo"][0] == "**80.0 ± 10.0**"
  assert shown["mine"][0] == "**90.0 ± 10.0**"
  assert "missing" not in text


def verdict(mine, other, **changed):
  done = trials("sparse", "grpo", other) | trials("sparse", "mine", mine)
  return made_of(tables.verdict, done, **changed)


def test_verdicts():
  # Differences seed by seed -.1, -.1, -.1: no error of their own.
  text = verdict([0.2, 0.5, 0.8], [0.3, 0.6, 0.9])
  assert rows(text)["sparse"] == [
    "grpo",
    "60.0 ± 17.3",
    "50.0 ± 17.3",
    "-10.0 ± 0.0",
    "20.0, other 30.0",
    "tied",
  ]
  assert "`mine` is first in 0, tied with the first in 1 (sparse)" in text
  assert rows(verdict([0.9, 0.9], [0.3, 0.6]))["sparse"][-1] == "first"
  assert rows(verdict([0.5, 0.6], [0.9, 0.9]))["sparse"][-1] == "behind"
  assert rows(verdict([0.9], [0.9]))["sparse"][-1] == "tied"
  assert rows(verdict([0.8], [0.9]))["sparse"] == [
    "grpo",
    "90.0",
    "80.0",
    "-10.0",
    "80.0, other 90.0",
    "behind",
  ]


def test_one_lost_seed_shows_in_the_verdict():
  """Its gap is as large as its standard error, whatever their number."""
  row = rows(verdict([1.0] * 5 + [0.0], [1.0] * 5 + [0.98]))["sparse"]
  assert row[3] == "-16.3 ± 16.3"
  assert row[4] == "0.0, other 98.0"


def test_the_best_other_is_the_best_of_all_that_choose():
  arms = {
    name: {"objective": {"kind": kind}}
    for name, kind in {"a": "grpo", "b": "sft", "mine": "distil"}.items()
  }
  arms["less"] = {"objective": {"kind": "distil"}, "like": "mine"}
  done = {}
  for arm, final in {"a": 0.1, "b": 0.5, "mine": 0.4, "less": 0.9}.items():
    done |= trials("sparse", arm, [final, final])
  text = made_of(tables.verdict, done, arms=arms)
  assert rows(text)["sparse"][0] == "b"


def test_no_verdict_on_the_default_alone():
  done = trials("sparse", "mine", [0.5])
  assert "No family has both `mine`" in made_of(tables.verdict, done)
  assert "No family" in made_of(tables.verdict, {})


def test_measures():
  done = trials("sparse", "grpo", [0.5, 0.5], length=4.0)
  done |= trials("sparse", "mine", [0.5, 0.5], p_eos=0.25)
  text = made_of(tables.measures, done)
  lines = [x for x in text.splitlines() if x.startswith("| sparse")]
  grpo, mine = ([c.strip() for c in x.strip("|").split("|")] for x in lines)
  # Reward alone has no teacher.
  assert grpo[1:] == ["grpo", "0.500", "4.000", *"–" * 4, "25.0"]
  shown = ["0.500", "–", "0.250", "–", "0.900", "–", "25.0"]
  assert mine[1:] == ["mine", *shown]


def test_pass_at_k_with_gaps():
  done = trials("sparse", "grpo", [0.25, 0.5])
  text = made_of(tables.pass_at_k, done)
  line = next(x for x in text.splitlines() if x.startswith("| sparse"))
  cells = [c.strip() for c in line.strip("|").split("|")]
  assert cells == ["sparse", "grpo", "37.5", "–"]


def ablations(mine, less, *measure, **changed):
  done = trials("sparse", "grpo", [0.9] * 3)
  done |= trials("sparse", "mine", mine) | trials("sparse", "less", less)
  return made_of(tables.ablations, done, *measure, **changed)


def test_ablations_stand_against_what_they_are_like():
  # Differences -.1, -.2, -.3, though both spread far more.
  text = ablations([0.3, 0.6, 0.9], [0.2, 0.4, 0.6])
  assert rows(text) == {
    "arm": ["sparse"],
    "mine, itself": ["60.0 ± 17.3"],
    "less": ["**-20.0 ± 5.8**"],
  }
  assert "missing" not in text
  text = ablations([0.3, 0.6, 0.9], [0.2, 0.4, 0.6], statistics.mean_accuracy)
  assert rows(text)["less"] == ["**-10.0 ± 2.9**"]


def test_gaps_within_two_errors_are_not_bold():
  assert rows(ablations([0.5, 0.5, 0.5], [0.6, 0.5, 0.7]))["less"] == [
    "+10.0 ± 5.8"
  ]
  text = ablations([0.5, 0.5, 0.5], [0.6])
  assert rows(text)["less"] == ["+10.0"]
  assert "Seeds still missing: less in sparse (1 of 3)." in text


def test_the_headline():
  done = trials("sparse", "grpo", [0.4, 0.5, 0.6])
  done |= trials("sparse", "mine", [0.5, 0.5, 0.6])
  done |= trials("early", "mine", [0.1, 0.1, 0.1])
  done |= trials("early", "grpo", [0.2, 0.2, 0.2])
  done |= trials("sparse", "less", [0.9] * 3)
  assert rows(made_of(tables.headline, done)) == {
    "avg@4, %": ["sparse", "early"],
    "grpo": ["50.0 ± 5.8 ☆", "20.0 ± 0.0 ★"],
    "**mine**": ["**53.3 ± 3.3 ★**", "**10.0 ± 0.0**"],
  }
  assert made_of(tables.score, done) == (
    "`mine` is first in 1 (sparse), tied with the first in 0 and behind in 1 "
    "(early) of 2 families."
  )


def test_all_with_the_highest_mean_are_first():
  done = trials("sparse", "grpo", [0.5, 0.5]) | trials(
    "sparse", "mine", [0.5, 0.5]
  )
  shown = rows(made_of(tables.headline, done))
  assert shown["grpo"] == ["50.0 ± 0.0 ★"]
  assert shown["**mine**"] == ["**50.0 ± 0.0 ★**"]


def test_the_headline_of_a_comparison_that_goes_on():
  done = trials("sparse", "grpo", [0.4]) | trials("sparse", "mine", [0.5])
  done |= trials("early", "mine", [0.5])
  shown = rows(made_of(tables.headline, done))
  assert shown["grpo"] == ["40.0", "–"]
  # Nobody is first alone.
  assert shown["**mine**"] == ["**50.0 ★**", "**50.0**"]
  score = made_of(tables.score, done)
  assert score.endswith("of 1 families. Without a result yet: early.")


def test_tables_are_aligned():
  text = markdown.table([["a", "number"], ["long name", "1.5"], ["b", "–"]])
  assert text == (
    "| a         | number |\n"
    "| --------- | -----: |\n"
    "| long name |    1.5 |\n"
    "| b         |      – |"
  )
