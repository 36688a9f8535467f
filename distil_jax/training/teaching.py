"""Finds what the teacher of each turn is told: solutions and feedback."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from distil_jax.data import teacher_prompts, teacher_templates
from distil_jax.data.teacher_templates import Template
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.training import taught_tokens
from distil_jax.training.rollouts.experience import Experience
from distil_jax.types import Status, Verdict

LearnFrom = Literal["all", "failures"]
SolutionSource = Literal["sibling", "reference", "sibling_or_reference", "none"]
FeedbackUse = Literal["when_no_solution", "always", "never"]


@dataclasses.dataclass(frozen=True)
class TeacherSettings:
  """Says what stands in the teacher's prompt; see `config.TeacherConfig`.

  Attributes:
    solution: which solution stands in the prompt.
    feedback: when the environment's feedback stands in the prompt.
    success_threshold: a reward from here on is a success.
    max_prompt_length: tokens of the prompt.
    template: the form of the prompt.
    num_sharing: prompts in a row whose common prefix is split off; 1 splits
      nothing.
    max_prefix_length: tokens of such a prefix.
    names: of several teachers, in the order of their numbers; empty if there is
      one.
    tokenizers: of those by name that write their prompts themselves.
    learn_from: the turns that a teacher judges: all, or those whose reward is
      below the threshold of success.
    first_tokens, skip: the tokens that it judges, see `taught_tokens`.
    num_turns: K, the most turns whose teachers have a prompt of their own; 1
      means that one prompt serves all turns.
  """

  solution: SolutionSource
  feedback: FeedbackUse
  success_threshold: float
  max_prompt_length: int
  template: Template = teacher_templates.block
  num_sharing: int = 1
  max_prefix_length: int = 0
  names: tuple[str, ...] = ()
  tokenizers: Mapping[str, Tokenizer] = dataclasses.field(default_factory=dict)
  learn_from: LearnFrom = "all"
  first_tokens: int | None = None
  skip: tuple[taught_tokens.Skipped, ...] = ()
  num_turns: int = 1


@dataclasses.dataclass(frozen=True)
class Teaching:
  """Holds what the teacher of one turn is told.

  Attributes:
    ids: the teacher's prompt; None if the turn has none.
    is_without_room: there was something to tell, and no room for it.
    was_truncated: solution or feedback had to be cut.
    has_feedback, has_sibling, has_reference: what the prompt holds.
  """

  ids: list[int] | None = None
  is_without_room: bool = False
  was_truncated: bool = False
  has_feedback: bool = False
  has_sibling: bool = False
  has_reference: bool = False


def writer(
  experience: Experience,
  i: int,
  tokenizer: Tokenizer,
  settings: TeacherSettings,
) -> Tokenizer:
  """Returns the tokenizer that writes the teacher's prompt of a sample."""
  teacher = experience.problems[i // experience.group_size].teacher
  return settings.tokenizers.get(teacher or "", tokenizer)


def teach_turns(
  experience: Experience,
  i: int,
  tokenizer: Tokenizer,
  settings: TeacherSettings,
) -> list[Teaching]:
  """Returns what the teacher of each turn of a sample is told."""
  turns = experience.turns_of(i)
  tokenizer = writer(experience, i, tokenizer, settings)
  found = [Teaching()] * settings.num_turns
  if not experience.is_judged[i]:
    return found
  for number, (attempt, verdict) in enumerate(turns):
    if _is_left_out(verdict, settings):
      continue
    found[number] = _teach(
      experience, i, attempt, verdict, tokenizer=tokenizer, settings=settings
    )
  return found


def has_content(
  experience: Experience, i: int, settings: TeacherSettings
) -> bool:
  """Returns True if the teacher of any turn of a sample has a prompt."""
  solution, _ = _solution(experience, i, settings)
  return any(
    not _is_left_out(verdict, settings)
    and (solution or _feedback(verdict, solution, settings))
    for _, verdict in experience.turns_of(i)
  )


def _is_left_out(verdict: Verdict | None, settings: TeacherSettings) -> bool:
  """Returns True for a success of which the teacher is to say nothing."""
  if settings.learn_from == "all" or verdict is None:
    return False
  return verdict.reward >= settings.success_threshold


def _teach(
  experience: Experience,
  i: int,
  attempt: str,
  verdict: Verdict | None,
  *,
  tokenizer: Tokenizer,
  settings: TeacherSettings,
) -> Teaching:
  solution, source = _solution(experience, i, settings)
  feedback = _feedback(verdict, solution, settings)
  if not (solution or feedback):
    return Teaching()
  fitted = teacher_prompts.fit_teacher_prompt(
    experience.problems[i // experience.group_size],
    # Both may quote what the student wrote.
    solution=solution and tokenizer.escape_special_tokens(solution),
    feedback=feedback and tokenizer.escape_special_tokens(feedback),
    attempt=tokenizer.escape_special_tokens(attempt),
    tokenizer=tokenizer,
    limit=settings.max_prompt_length,
    template=settings.template,
  )
  if fitted is None:
    return Teaching(is_without_room=True)
  return Teaching(
    fitted.ids,
    was_truncated=fitted.was_truncated,
    has_feedback=fitted.has_feedback,
    has_sibling=fitted.has_solution and source == "sibling",
    has_reference=fitted.has_solution and source == "reference",
  )


def count(told: Sequence[Sequence[Teaching]], name: str) -> int:
  """Returns the number of samples of which it is true in any turn."""
  return sum(any(getattr(turn, name) for turn in turns) for turns in told)


def _solution(
  experience: Experience, i: int, settings: TeacherSettings
) -> tuple[str | None, str]:
  """Returns a worked solution, and its source: sibling, reference or none."""
  problem, member = divmod(i, experience.group_size)
  if settings.solution in ("sibling", "sibling_or_reference"):
    start = problem * experience.group_size
    solution = teacher_prompts.choose_solution(
      experience.rewards[problem].tolist(),
      experience.completions[start : start + experience.group_size],
      member,
      threshold=settings.success_threshold,
    )
    if solution is not None:
      return solution, "sibling"
  if "reference" in settings.solution:
    return experience.problems[problem].solution, "reference"
  return None, "none"


def _feedback(
  verdict: Verdict | None, solution: str | None, settings: TeacherSettings
) -> str | None:
  """Returns the feedback that stands in the teacher's prompt, if any does."""
  is_wanted = settings.feedback == "always" or (
    settings.feedback == "when_no_solution" and not solution
  )
  if not is_wanted or verdict is None or verdict.status == Status.CORRECT:
    return None
  return verdict.feedback
