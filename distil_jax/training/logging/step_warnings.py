"""Warns of steps from which nothing can be learned, once for each cause."""

from collections.abc import Iterator, Mapping, Sequence

# So many steps in a row without anything to learn are no chance any more.
_PATIENCE = 5


class StepWarnings:
  """Looks at the metrics of each step; a resumed run starts anew.

  Attributes:
    end_tokens: the texts of the tokens that end a completion.
  """

  end_tokens: Sequence[str] = ()

  def __init__(
    self,
    *,
    max_completion_length: int,
    needs_teacher: bool = False,
    compares_group: bool = False,
  ):
    """Remembers what the warnings name.

    Args:
      max_completion_length: T.
      needs_teacher: a sample without a teacher's prompt teaches nothing.
      compares_group: a group with equal rewards teaches nothing.
    """
    self._length = max_completion_length
    self._needs_teacher = needs_teacher
    self._compares_group = compares_group
    self._num_in_a_row: dict[str, int] = {}

  def of_step(self, step: int, metrics: Mapping[str, float]) -> Iterator[str]:
    """Yields the warnings of a step.

    Args:
      step: the training step, counted from 1.
      metrics: the step's metrics.
    """
    if self._is_new("cut", metrics.get("cut_off", 0) == 1, patience=1):
      yield (
        f"step {step}: every completion was cut off at rollout."
        f"max_completion_length={self._length}, so that none has an end to "
        "learn from. Either it is too low, or the model does not write a token "
        f"that ends a completion ({', '.join(self.end_tokens)}), as base "
        "models often do not; raise it, add a text that ends an answer to "
        "rollout.stop, or begin with objective.kind=sft"
      )
    has_no_signal = metrics.get("signal_fraction", 1) == 0
    if self._needs_teacher and self._is_new("signal", has_no_signal):
      yield (
        f"step {step}: for {_PATIENCE} steps no sample had a teacher's prompt, "
        "so nothing was learned from the teacher. A prompt needs a solution or "
        "feedback: see teacher.solution, teacher.feedback and the verdicts in "
        "rollouts/; teacher/no_room counts prompts that did not fit "
        "teacher.max_prompt_length"
      )
    is_flat = metrics.get("frac_reward_zero_std", 0) == 1
    if self._compares_group and self._is_new("flat", is_flat):
      yield (
        f"step {step}: for {_PATIENCE} steps the samples of every problem had "
        "equal rewards, so that rewards taught nothing. The problems may be "
        "too hard or too easy, or the environment may miss the answers: read "
        "rollouts/; a larger rollout.group_size finds differences sooner"
      )

  def _is_new(self, cause: str, is_so: bool, patience: int = _PATIENCE) -> bool:
    """Counts steps in a row; True at the one that is to be warned of."""
    before = self._num_in_a_row.get(cause, 0)
    if before >= patience:
      return False
    self._num_in_a_row[cause] = before + 1 if is_so else 0
    return self._num_in_a_row[cause] == patience
