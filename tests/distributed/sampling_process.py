"""One of several processes that sample together; see test_two_processes."""

import sys
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.config.environments import SelfEvaluationConfig
from distil_jax.data import shared_prefixes
from distil_jax.data import tokenizer as tokenizers
from distil_jax.envs import judge_pool, self_evaluation
from distil_jax.generation import engine, policy, random_keys
from distil_jax.generation.policy import resolve_directory
from distil_jax.models import decoder, sharding
from distil_jax.training.rollouts import experience, self_critique, tool_pool
from distil_jax.types import Problem, Status, Verdict
from tests import networks, rollout_workers

# All but the last have the programs of the first.
CASES = {
  "few slots": {"num_slots": 4},
  "stop strings": {"num_slots": 4, "stop": ("a", "1")},
  "truncated": {"num_slots": 4, "temperature": 1.3, "top_k": 20, "top_p": 0.9},
  "another mesh": {"rollout_mesh": (4, 1, 1)},
}
NAMES = [4, 9, 4, 2, 7, 5, 6, 8]
LENGTHS = [3, 1, 4, 2, 5, 5, 2, 3]


def sample(mesh: jax.sharding.Mesh, rows: slice) -> dict[str, Any]:
  """This process's completions in every case."""
  tokens = tokenizers.Tokenizer.load(resolve_directory("embedded:calculator"))
  network = networks.network(
    seed=2, num_layers=1, vocab_size=tokens.vocab_size + 1
  )
  with jax.set_mesh(mesh):
    places = decoder.shardings(mesh, network.params)
    host = jax.tree.map(np.asarray, network.params)
    params = jax.tree.map(
      lambda x, place: jax.make_array_from_callback(
        x.shape, place, lambda index: x[index]
      ),
      host,
      places,
    )
  whole = policy.Policy(network.config, network.graphdef, {}, tokens)
  ids, mask = networks.random_prompts(
    np.random.default_rng(6), LENGTHS, 6, tokens.vocab_size
  )
  found = {}
  for name, changed in CASES.items():
    settings = dict(changed)
    if "rollout_mesh" in settings:
      settings["rollout_mesh"] = sharding.make_mesh(
        *settings["rollout_mesh"], devices=mesh.devices.flatten().tolist()
      )
    sampler = rollout_workers.make(
      whole,
      None,  # pyright: ignore[reportArgumentType]
      mesh,
      group_size=2,
      max_prompt_length=6,
      max_completion_length=12,
      **settings,
    )
    names = random_keys.identities(NAMES)[rows]
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
      if name != "few slots":
        _keep_slots(patch)
      reported = {}
      rolled, _ = sampler.sample(
        params,
        ids[rows],
        mask[rows],
        names,
        jax.random.key(0),
        on_finished=lambda row, ids, reported=reported: reported.update(
          {row: ids.tolist()}
        ),
      )
    for row, counts in enumerate(rolled.completion_mask):
      length = counts.sum()
      assert reported.pop(row) == rolled.completion_ids[row, :length].tolist()
    assert not reported
    found[name] = np.where(rolled.completion_mask, rolled.completion_ids, -1)
  found |= criticise(whole, params, mesh, rows)
  return found | converse(whole, params, mesh, rows)


def _keep_slots(patch: pytest.MonkeyPatch) -> None:
  """Gives up no slots: each number of them is a program that compiles long."""
  patch.setattr(engine, "ladder", lambda width: [width])


class Attempts:
  """Two attempts at each problem, which fail in the first process alone."""

  group_size = 2

  def judge(self, problem, completion):
    if problem.index in NAMES[:4]:
      return Verdict(0.0, "no", Status.WRONG)
    return Verdict(1.0, "", Status.CORRECT)

  def __call__(self, params, problems, key, *, report, max_lengths=None):
    del params, key, report, max_lengths
    completions = [f"{p.index} {i}" for p in problems for i in range(2)]
    verdicts = [
      self.judge(problems[row // 2], completion)
      for row, completion in enumerate(completions)
    ]
    rolled: Any = None
    return experience.Experience(problems, 2, rolled, completions, verdicts)


def criticise(
  whole: policy.Policy,
  params: decoder.Params,
  mesh: jax.sharding.Mesh,
  rows: slice,
) -> dict[str, Any]:
  """What the policy says of failures; the second process has none."""
  student: Any = Attempts()
  environment = self_evaluation.SelfEvaluation(
    SelfEvaluationConfig(rubric="{problem} {completion}"), student
  )
  critic = self_critique.SelfCritic(
    student,
    rollout_workers.make(
      whole,
      None,  # pyright: ignore[reportArgumentType]
      mesh,
      group_size=1,
      max_prompt_length=24,
      max_completion_length=12,
    ),
    environment,
    whole.tokenizer,
    max_prompt_length=24,
    max_length=12,
  )
  problems = [
    Problem(i, ({"role": "user", "content": f"Compute {i}."},), "")
    for i in NAMES[rows]
  ]
  with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
    _keep_slots(patch)
    found = critic(params, problems, jax.random.key(0))
  assert found.critiques is not None
  num_asked = sum(v.status is Status.WRONG for v in found.verdicts)
  assert found.critiques["asked"] == num_asked
  return {"critiques": np.asarray([v.feedback for v in found.verdicts], "U99")}


def converse(
  whole: policy.Policy,
  params: decoder.Params,
  mesh: jax.sharding.Mesh,
  rows: slice,
) -> dict[str, Any]:
  """Episodes in which the tool speaks to the first process alone."""

  def tool(problem, turns, outputs):
    return str(len(turns)) if problem.index in NAMES[:4] else None

  student: Any = Attempts()
  player = rollout_workers.make(
    whole,
    judge_pool.JudgePool(student),
    mesh,
    group_size=2,
    max_prompt_length=12,
    max_completion_length=60,
    stop=tuple("0123456789"),  # turns are short
    partner=tool_pool.ToolPool(
      tool, whole.tokenizer, max_turns=3, max_output_tokens=16
    ),
  )
  problems = [
    Problem(i, ({"role": "user", "content": f"{i}"},), "") for i in NAMES[rows]
  ]
  seen = []
  with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
    _keep_slots(patch)
    # One width of prompts too: each is a program.
    patch.setattr(shared_prefixes, "_NUM_WIDTHS", 1)
    found = player(
      params,
      problems,
      jax.random.key(0),
      report=lambda num_tokens, num_done: seen.append(num_done),
    )
  assert found.usage is not None
  assert seen[-1] == 2 * len(NAMES)  # of all processes
  own = found.rollout.student_mask
  return {
    "episodes": np.where(own, found.rollout.completion_ids, -1),
    "turns": found.episode_values["tools/turns"],
    "tokens": np.full(len(problems), found.usage.num_tokens),
  }


def main() -> None:
  address, index, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
  jax.config.update("jax_numpy_rank_promotion", "raise")  # as in the tests
  jax.distributed.initialize(address, num_processes=2, process_id=index)
  engine._STEPS = 4  # several looks
  rows = slice(4 * index, 4 * index + 4)
  found: dict[str, Any] = sample(sharding.make_mesh(2, 1, 2), rows)
  np.savez(out, **found)


if __name__ == "__main__":
  main()
