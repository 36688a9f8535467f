"""Compares a server's lists of tokens with those of the same model here.

  python -m benchmarks.server_teacher http://127.0.0.1:8000/v1 MODEL DIRECTORY

Asks a server about a few sequences as a run with `teacher.server` does, and
scores them with the model in DIRECTORY, which must have the server's weights.
Prints how far the log-probabilities are apart, and the time of a request.
"""

import argparse
import time

import jax
import numpy as np

from distil_jax import config
from distil_jax.generation.policy import Policy, load_policy, logits
from distil_jax.training.setup import teacher_servers
from distil_jax.types import BatchStats, TrainBatch

_TEXTS = (
  ("What is the capital of France?", "The capital of France is Paris."),
  ("Compute 12 * 11.", "12 times 11 is 131, because 12 * 10 is 120."),
  ("Name three colours.", "Red, green and a very unusual kind of stone."),
)


def main() -> None:
  """Prints one line for each number."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("url")
  parser.add_argument("model")
  parser.add_argument("directory")
  parser.add_argument("--protocol", default="next_token")
  parser.add_argument("--access", default="top_k")
  parser.add_argument("--size", type=int, default=20)
  arguments = parser.parse_args()
  policy = load_policy(arguments.directory)
  batch, stats = _batch(policy)
  trial = _trial(arguments, batch)
  teacher = teacher_servers.build_remote_teacher(trial, policy)
  assert teacher is not None
  teacher_servers.check_server(trial, teacher)
  started = time.monotonic()
  found, counted = teacher(0, batch, stats)
  seconds = time.monotonic() - started
  counts = counted.server_counts
  assert counts is not None
  is_token = np.asarray(found.completion_mask) == 1
  is_token &= np.asarray(found.sample_mask)[:, None] == 1
  ids = found.teacher_candidate_ids[is_token]
  listed = found.teacher_candidate_log_probs[is_token]
  expected = _log_probs(policy, batch)[is_token]
  own = np.take_along_axis(expected, ids, 1)
  print(f"{counts}, {1000 * seconds / counts['requests']:.1f} ms a request")
  if arguments.access == "samples":
    # −log p of samples is the entropy on average, if they are of this p.
    entropy = -(np.exp(expected) * expected).sum(1).mean()
    print(f"mean -log p of samples {-own.mean():.3f}, entropy {entropy:.3f}")
    return
  difference = np.abs(own - listed)
  same = (ids[:, 0] == expected.argmax(1)).mean()
  print(f"tokens {len(ids)}, the same most probable token at {same:.1%}")
  print(
    f"difference of log-probabilities: mean {difference.mean():.2g}, of the "
    f"first {difference[:, 0].mean():.2g}, largest {difference.max():.2g}"
  )


def _trial(arguments: argparse.Namespace, batch: TrainBatch) -> config.Config:
  """Returns the settings of a run that would ask so."""
  return config.parse(
    {
      "model": {"directory": arguments.directory},
      "teacher": {
        "server": {
          "url": arguments.url,
          "model": arguments.model,
          "protocol": arguments.protocol,
        },
        "access": arguments.access,
        "top_k": arguments.size,
        "num_samples": arguments.size,
        "max_prompt_length": batch.teacher_prompt_ids.shape[1],
      },
      "rollout": {"max_completion_length": batch.completion_ids.shape[1]},
      "objective": {
        "kind": "distil",
        "local_cost": "forward_cross_entropy",
        "cost": "cross_entropy",
      },
    }
  )


def _batch(policy: Policy) -> tuple[TrainBatch, BatchStats]:
  """Returns the texts as a batch whose teacher reads the student's prompts."""
  tokenizer = policy.tokenizer
  prompts = [
    tokenizer.encode_messages([{"role": "user", "content": question}])
    for question, _ in _TEXTS
  ]
  completions = [tokenizer.encode(answer) for _, answer in _TEXTS]
  width, length = max(map(len, prompts)), max(map(len, completions))
  prompt_ids = np.zeros((len(prompts), width), np.int32)
  prompt_mask = np.zeros_like(prompt_ids)
  ids = np.zeros((len(prompts), length), np.int32)
  mask = np.zeros_like(ids)
  for row, (prompt, completion) in enumerate(
    zip(prompts, completions, strict=True)
  ):
    prompt_ids[row, width - len(prompt) :] = prompt
    prompt_mask[row, width - len(prompt) :] = 1
    ids[row, : len(completion)] = completion
    mask[row, : len(completion)] = 1
  batch = TrainBatch(
    prompt_ids=prompt_ids,
    prompt_mask=prompt_mask,
    teacher_prompt_ids=prompt_ids,
    teacher_prompt_mask=prompt_mask,
    completion_ids=ids,
    completion_mask=mask,
    sample_mask=np.ones(len(ids), np.int32),
    rewards=np.zeros(len(ids), np.float32),
    old_log_probs=np.zeros(ids.shape, np.float32),
  )
  stats = BatchStats(
    teacher_prompts=[],
    teacher_prompt_ids=prompt_ids,
    teacher_prompt_mask=prompt_mask,
  )
  return batch, stats


def _log_probs(policy: Policy, batch: TrainBatch) -> np.ndarray:
  """Returns log-probabilities of all tokens at each place. `[B, T, V]`."""
  ids = np.concatenate([batch.prompt_ids, batch.completion_ids], axis=1)
  mask = np.concatenate([batch.prompt_mask, batch.completion_mask], axis=1)
  before = slice(batch.prompt_ids.shape[1] - 1, -1)
  return np.asarray(jax.nn.log_softmax(logits(policy, ids, mask)[:, before]))


if __name__ == "__main__":
  main()
