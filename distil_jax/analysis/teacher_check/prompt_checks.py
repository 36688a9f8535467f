"""Checks the texts and ids of prompts and completions."""

import numpy as np

from distil_jax.analysis.teacher_check.records import Check, Gathered
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.envs import completion_text
from distil_jax.types import Status, StopReason

# A feedback that was cut still has so many characters in common with the whole.
_BEGINNING = 12


def tokenizer(gathered: Gathered) -> Check:
  """Checks ids: the same tokens for both, ends in place, texts that survive."""
  own, theirs = gathered.tokenizer, gathered.teacher_tokenizer
  faults = []
  if not set(own.eos_ids) <= set(theirs.eos_ids):
    faults.append(
      f"the student ends with {own.eos_ids}, but the teacher with "
      f"{theirs.eos_ids}"
    )
  size = min(own.vocab_size, theirs.vocab_size, gathered.vocab_size)
  num_other_ids = 0
  for row in range(len(gathered.experience.completions)):
    completion = gathered.completion(row)
    prompts = [(own, gathered.student_prompt(row))]
    if gathered.batch.sample_mask[row]:
      prompts.append((gathered.writer(row), gathered.teacher_prompt(row)))
    for encoder, prompt in prompts:
      ids = prompt + completion
      if max(ids) >= size:
        faults.append(
          f"sample {row + 1}: id {max(ids)}, but the vocabulary has {size}"
        )
        continue
      marker = generation_marker(encoder)
      if marker and prompt[-len(marker) :] != marker:
        faults.append(
          f"sample {row + 1}: a prompt does not end with the marker of the "
          "assistant's turn"
        )
      text = encoder.decode(ids, skip_special=False)
      again = encoder.backend.encode(text, add_special_tokens=False)
      num_other_ids += again != ids
      if encoder.decode(again, skip_special=False) != text:
        faults.append(f"sample {row + 1}: ids -> text -> ids -> text differs")
    faults += _end_faults(gathered, row)
  said = (
    f"ids below {size}, ends {own.eos_ids}, text survives; "
    f"{num_other_ids} sequences would be split otherwise from text, and are "
    "scored as the ids that were sampled"
  )
  return Check(
    "tokenizer",
    not faults,
    "; ".join(faults[:3]) if faults else said,
    "student and teacher must share one vocabulary; check the files of "
    "tokenizer and chat template in model.directory",
  )


def generation_marker(encoder: Tokenizer) -> list[int]:
  """Returns the ids with which a prompt opens the assistant's turn."""
  messages = [{"role": "user", "content": "x"}]
  whole = encoder.encode_messages(messages)
  without = encoder.encode_messages(messages, add_generation_prompt=False)
  return whole[len(without) :] if whole[: len(without)] == without else []


def _end_faults(gathered: Gathered, row: int) -> list[str]:
  """Returns what is wrong with the end of a completion."""
  rollout = gathered.experience.rollout
  mask = np.asarray(rollout.completion_mask[row])
  completion = gathered.completion(row)
  faults = []
  if mask.any() and not mask[: len(completion)].all():
    faults.append(f"sample {row + 1}: its mask has holes")
  reason = StopReason(int(rollout.stop_reasons[row]))
  has_end = bool(completion) and completion[-1] in gathered.tokenizer.eos_ids
  if (reason == StopReason.EOS) != has_end:
    faults.append(
      f"sample {row + 1}: stop reason {reason.name.lower()}, but its last id "
      f"is {completion[-1:]}"
    )
  return faults


def feedback(gathered: Gathered) -> Check:
  """Checks who sees the feedback: the teacher, and not the student."""
  experience, stats = gathered.experience, gathered.stats
  section = gathered.config.teacher
  faults, notes = [], []
  num_in_prompt = num_cut = 0
  for row, verdict in enumerate(experience.verdicts):
    problem = experience.problems[row // experience.group_size]
    own_ids = gathered.tokenizer.encode_messages(problem.messages)
    if gathered.student_prompt(row) != own_ids:
      faults.append(
        f"sample {row + 1}: the student's prompt is not the problem alone"
      )
    prompt = stats.teacher_prompts[row]
    if prompt is None or not is_feedback_due(gathered, row):
      continue
    held = held_feedback(gathered, row)
    if held == "whole":
      num_in_prompt += 1
    elif held == "cut":
      num_in_prompt += 1
      num_cut += 1
    elif _has_solution(gathered, row):
      continue
    else:
      faults.append(
        f"sample {row + 1}: the teacher's prompt lacks {verdict.feedback!r:.40}"
      )
  limit = f"teacher.max_prompt_length={section.max_prompt_length}"
  if stats.num_truncated:
    notes.append(
      f"{stats.num_truncated} prompts were cut at {limit}, "
      f"{num_cut} of them in the feedback"
    )
  if stats.num_without_room:
    notes.append(f"{stats.num_without_room} did not fit {limit} at all")
  num_signals = int(np.asarray(gathered.batch.sample_mask).sum())
  said = (
    f"{num_signals} of {len(experience.verdicts)} samples have a teacher; "
    f"{num_in_prompt} teacher's prompts hold feedback, "
    f"{stats.num_sibling + stats.num_reference} a solution, no student's does"
  )
  is_ok = not faults and num_signals > 0
  return Check(
    "feedback",
    is_ok,
    "; ".join([*faults[:3], said, *notes] if not faults else faults[:3]),
    "the teacher must see what the student does not: look at teacher.feedback, "
    "teacher.solution and teacher.max_prompt_length, and at the problems' "
    "messages",
  )


def is_feedback_due(gathered: Gathered, row: int) -> bool:
  """Returns True if the settings put the feedback of a sample into a prompt."""
  verdict = gathered.experience.verdicts[row]
  use = gathered.config.teacher.feedback
  has_any = bool(verdict.feedback.strip())
  is_failure = verdict.status not in (Status.CORRECT, Status.CRASHED)
  return use != "never" and has_any and is_failure


def held_feedback(gathered: Gathered, row: int) -> str:
  """Returns how much of the feedback a prompt holds: whole, cut or none."""
  prompt = gathered.stats.teacher_prompts[row] or ""
  encoder = gathered.writer(row)
  text = encoder.escape_special_tokens(
    gathered.experience.verdicts[row].feedback
  ).strip()
  # Some templates change spaces, which say nothing about the feedback.
  prompt, text = (" ".join(x.split()) for x in (prompt, text))
  if text in prompt:
    return "whole"
  return "cut" if text[:_BEGINNING] in prompt else "none"


def _has_solution(gathered: Gathered, row: int) -> bool:
  """Returns True if a solution has taken the place of the feedback."""
  experience, section = gathered.experience, gathered.config.teacher
  if section.feedback == "always":
    return False
  size = experience.group_size
  group = range(row // size * size, row // size * size + size)
  texts = [
    experience.completions[i]
    for i in group
    if i != row and experience.verdicts[i].reward >= section.success_threshold
  ]
  reference = experience.problems[row // size].solution
  if "reference" in section.solution and reference:
    texts.append(reference)
  prompt = " ".join((gathered.stats.teacher_prompts[row] or "").split())
  for text in texts:
    plain = completion_text.without_thought(text)
    plain = gathered.writer(row).escape_special_tokens(plain)
    beginning = " ".join(plain.split())[:_BEGINNING]
    if beginning and beginning in prompt:
      return True
  return False
