"""The policy on its own completions: what it says becomes their feedback."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from distil_jax.data import padding
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.distributed import collectives
from distil_jax.envs import SelfJudged
from distil_jax.generation import engine, random_keys
from distil_jax.models import decoder
from distil_jax.training.rollouts.experience import Experience
from distil_jax.training.rollouts.rollout_worker import RolloutWorker
from distil_jax.types import Message, Problem, Rollout, StopReason, Verdict

# Folded into a step's key, to keep the noise of critiques apart from that of
# completions.
_CRITIQUES = 2**31 + 2
# What is counted; all but `asked` and `no_room` of what is asked.
COUNTS = ("asked", "no_room", "prompt_cut", "unreadable", "cut_off", "tokens")
LEFT_OUT = "\n[… part of the attempt is left out here …]\n"


@dataclasses.dataclass(frozen=True)
class CritiquePrompt:
  """A prompt that fits its limit.

  Attributes:
    ids: the prompt up to and with the marker of the assistant's turn.
    was_cut: whether part of the completion is left out.
  """

  ids: list[int]
  was_cut: bool


class SelfCritic:
  """Samples and judges as an actor does, then has the policy criticise.

  One critique of each completion that there is something to ask about, by the
  parameters that sampled it. All processes take part, also one that has nothing
  to ask, and the number of rows is always the same: a row that asks nothing
  ends with its first token.
  """

  def __init__(
    self,
    student: RolloutWorker,
    critic: RolloutWorker,
    environment: SelfJudged,
    tokenizer: Tokenizer,
    *,
    max_prompt_length: int,
    max_length: int,
  ):
    """Nothing is compiled yet.

    Args:
      student: samples and judges.
      critic: samples critiques; its group size is 1.
      environment: asks, and reads what is answered.
      tokenizer: of the policy.
      max_prompt_length: of what is asked, tokens.
      max_length: of a critique, tokens.
    """
    self.group_size = student.group_size
    self._student = student
    self._critic = critic
    self._environment = environment
    self._tokenizer = tokenizer
    self._max_prompt_length = max_prompt_length
    self._max_length = max_length

  def __call__(
    self,
    params: decoder.Params,
    problems: Sequence[Problem],
    key: jax.Array,
    *,
    report: engine.Report = lambda num_tokens, num_done: None,
  ) -> Experience:
    """An experience whose verdicts are those that the critiques make.

    The completions are those that the actor alone would sample. A critique
    depends on the key, its own prompt, problem and number within the group: not
    on who else is criticised.

    Args:
      params, problems, key, report: see `Actor`.
    """
    experience = self._student(params, problems, key, report=report)
    asked, counts = self._asked(experience)
    verdicts = list(experience.verdicts)
    if collectives.global_max(len(asked)):
      sampled = self._sampled(params, experience, asked, key)
      for row in asked:
        ids = sampled.completion_ids[row][sampled.completion_mask[row] == 1]
        text = self._tokenizer.decode(ids.tolist())
        found = self._environment.with_critique(verdicts[row], text)
        is_cut_off = sampled.stop_reasons[row] == StopReason.LENGTH
        counts["tokens"] += len(ids)
        counts["cut_off"] += int(is_cut_off)
        counts["unreadable"] += not found.details.get("has_critique", True)
        verdicts[row] = found
    return dataclasses.replace(
      experience, verdicts=verdicts, critiques=dict(counts)
    )

  def _asked(
    self, experience: Experience
  ) -> tuple[dict[int, list[int]], collections.Counter[str]]:
    """Token ids of what is asked, by row, and counts for the report."""
    asked: dict[int, list[int]] = {}
    counts: collections.Counter[str] = collections.Counter()
    counts.update(dict.fromkeys(COUNTS, 0))
    for row, verdict in enumerate(experience.verdicts):
      problem = experience.problems[row // self.group_size]
      prompt = self._prompt(problem, experience.completions[row], verdict)
      if prompt is None:
        continue
      if not prompt.ids:
        counts["no_room"] += 1
        continue
      asked[row] = prompt.ids
      counts["asked"] += 1
      counts["prompt_cut"] += prompt.was_cut
    return asked, counts

  def _prompt(
    self, problem: Problem, completion: str, verdict: Verdict
  ) -> CritiquePrompt | None:
    """None: there is nothing to ask."""
    disarmed = self._tokenizer.disarmed
    verdict = dataclasses.replace(verdict, feedback=disarmed(verdict.feedback))

    def build(text: str) -> Sequence[Message] | None:
      return self._environment.critique_prompt(problem, text, verdict)

    return fit_critique_prompt(
      build,
      disarmed(completion),
      encode=self._tokenizer.encode_messages,
      encode_text=self._tokenizer.encode,
      decode=self._tokenizer.decode,
      limit=self._max_prompt_length,
    )

  def _sampled(
    self,
    params: decoder.Params,
    experience: Experience,
    asked: Mapping[int, list[int]],
    key: jax.Array,
  ) -> Rollout:
    """A critique for each row; of a row that asks nothing it means nothing."""
    pad_id, num_rows = self._tokenizer.pad_id, len(experience.completions)
    ids, mask = padding.pad_left(
      [asked.get(row, [pad_id]) for row in range(num_rows)],
      self._max_prompt_length,
      pad_id,
    )
    names = random_keys.identities([p.index for p in experience.problems])
    # Of each member of a group another one.
    names = np.repeat(names, self.group_size, axis=0)
    members = np.arange(num_rows) % self.group_size
    names[:, 1] = names[:, 1] * self.group_size + members
    is_asked = np.isin(np.arange(num_rows), list(asked))
    sampled, _ = self._critic.sample(
      params,
      ids,
      mask,
      names,
      jax.random.fold_in(key, _CRITIQUES),
      max_lengths=np.where(is_asked, self._max_length, 1),
    )
    return sampled


def fit_critique_prompt(
  build: Callable[[str], Sequence[Message] | None],
  completion: str,
  *,
  encode: Callable[[Sequence[Message]], list[int]],
  encode_text: Callable[[str], list[int]],
  decode: Callable[[Sequence[int]], str],
  limit: int,
) -> CritiquePrompt | None:
  """What is asked about a completion, as ids, cut where it is too long.

  Of the completion the middle is left out, with a sign, between tokens; all
  else stays whole.

  Args:
    build: a completion, or what is left of it -> messages.
    completion: to be criticised.
    encode: messages -> ids of the whole prompt.
    encode_text: text -> ids.
    decode: ids -> text.
    limit: most tokens in the prompt.

  Returns:
    None where `build` asks nothing; without ids where not even a prompt fits
    that leaves out the whole completion.
  """
  messages = build(completion)
  if messages is None:
    return None
  ids = encode(messages)
  if len(ids) <= limit:
    return CritiquePrompt(ids, was_cut=False)
  tokens = encode_text(completion)
  best, low, high = [], -1, min(len(tokens), limit) + 1
  while low + 1 < high:  # `low` tokens fit, `high` do not
    middle = (low + high) // 2
    messages = build(_without_middle(tokens, middle, decode))
    ids = encode(messages or ())
    if len(ids) > limit:
      high = middle
    else:
      low, best = middle, ids
  return CritiquePrompt(best, was_cut=True)


def _without_middle(
  tokens: Sequence[int], num_kept: int, decode: Callable[[Sequence[int]], str]
) -> str:
  """The first and the last tokens, as many of each."""
  num_last = num_kept // 2
  first = tokens[: num_kept - num_last]
  last = tokens[len(tokens) - num_last :]
  # A cut may go through a character, whose other part is no text.
  return (
    decode(first).rstrip("\ufffd") + LEFT_OUT + decode(last).lstrip("\ufffd")
  )
