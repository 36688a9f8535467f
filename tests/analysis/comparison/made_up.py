"""Comparisons of a few arms, and trials that are made up."""

from distil_jax.analysis.comparison.settings import Comparison
from distil_jax.analysis.comparison.trial_record import Trial

RATE = 1e-3
GRID = (3e-4, 1e-3, 3e-3)


def comparison(**changed):
  return Comparison.model_validate(
    {
      "name": "trial",
      "default": "mine",
      "families": {"sparse": {}, "early": {}},
      "arms": {
        "grpo": {"objective": {"kind": "grpo"}},
        "mine": {"objective": {"kind": "distil"}},
        "less": {"objective": {"kind": "distil"}, "like": "mine"},
      },
      "learning_rates": [RATE],
      "seeds": 3,
      "pass_at": [1, 4],
      **changed,
    }
  )


def tuned_comparison(**changed):
  """With an arm of each kind: tuned, fixed, like another, in one family."""
  return Comparison.model_validate(
    {
      "default": "grpo",
      "families": {"sparse": {}, "early": {}},
      "arms": {
        "grpo": {"objective": {"kind": "grpo"}},
        "fixed": {"objective": {"kind": "sft"}, "learning_rates": [5e-4]},
        "longer": {
          "objective": {"kind": "grpo"},
          "like": "grpo",
          "num_steps_factor": 10,
        },
        "here": {"objective": {"kind": "opsd"}, "families": ["early"]},
      },
      "learning_rates": GRID,
      "tuning_seeds": 2,
      **changed,
    }
  )


def trials(family, arm, finals, rate=RATE, first=0, **last):
  """Records whose curves rise from 0 to the final accuracy."""
  done = {}
  for i, final in enumerate(finals):
    end = {"step": 2, "avg": final, "entropy": 0.5, "teacher": 0.9, **last}
    base = (first + i) % 2
    done[Trial(family, arm, base, first + i, rate)] = {
      "base": base,
      "seed": first + i,
      "learning_rate": rate,
      "num_sequences": 8,
      "step_seconds": 0.25,
      "before": {"avg": 0.125},
      "revision": {"commit": "0123456789abcdef", "dirty": False},
      "after": {"avg": final, "pass@1": final},
      "curve": [{**end, "step": 1, "avg": 0.0}, end],
    }
  return done


def rows(table):
  """Cells of a Markdown table, head and all, by first cell."""
  lines = [x for x in table.splitlines() if x.startswith("|")]
  cells = [[c.strip() for c in x.strip("|").split("|")] for x in lines]
  return {row[0]: row[1:] for row in cells if not row[0].startswith("-")}
