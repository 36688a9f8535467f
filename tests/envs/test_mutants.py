"""The tables of answers notice faults in the code that compares them."""

from benchmarks import mutants
from distil_jax.envs.math_answers import compare, dates


def test_the_tables_kill_mutants():
  cases = mutants.decided()
  assert len(cases) > 500
  counts = mutants.count(dates, cases, every=5)
  assert counts["killed"] > 0.6 * counts["mutants"] > 2
  # The module is as before.
  assert compare.compare("June 20th", "20 June", compare.no_algebra)
