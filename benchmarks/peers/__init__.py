"""Runs samplers of other libraries, each in a process and environment apart.

  with peers.Peer("tunix", peers.python("tunix"), sizes) as tunix:
    seconds = tunix.generate(prompt_ids, 128, temperature=1.0, seed=0)

benchmarks/peers/README.md says how the environments are made. The workers
import this package too, so it needs only the standard library.
"""

import json
import os
import pathlib
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

NAMES = ("transformers", "tunix")
# The keys of `sizes`, named as in `models.decoder_config.DecoderConfig`.
SIZES: tuple[str, ...] = (
  "vocab_size",
  "width",
  "num_layers",
  "num_heads",
  "num_kv_heads",
  "head_size",
  "mlp_size",
)
ROOT = pathlib.Path(__file__).resolve().parents[2]


def python(name: str) -> pathlib.Path:
  """Returns the path at which the interpreter of a peer is expected."""
  return ROOT / ".peers" / name / "bin" / "python"


def is_installed(name: str) -> bool:
  return python(name).exists()


def commands(name: str) -> str:
  """Returns the commands that make a peer's environment, in the root folder."""
  return (
    f"python3.11 -m venv .peers/{name} && .peers/{name}/bin/pip install "
    f"-r benchmarks/peers/{name}.txt"
  )


class PeerError(RuntimeError):
  """Says that a peer is not installed, died, or took too long."""


class Peer:
  """A sampler in another process; it starts with the first request."""

  def __init__(
    self,
    name: str,
    python: os.PathLike[str] | str,
    sizes: Mapping[str, int],
    *,
    program: Sequence[str] | None = None,
    timeout: float = 600.0,
  ):
    """Stores the settings; nothing is started yet.

    Args:
      name: name of the peer, one of `NAMES` unless a program is given.
      python: interpreter of the peer's environment.
      sizes: sizes of the network; has all keys of `SIZES`.
      program: arguments of Python; None means the worker of that name.
      timeout: seconds for one answer, compilation included.
    """
    if set(sizes) != set(SIZES):
      raise ValueError(f"sizes are {sorted(sizes)}, not {sorted(SIZES)}")
    self.name = name
    self.python = pathlib.Path(python)
    self.program = program or ("-m", f"benchmarks.peers.{name}_worker")
    self.sizes = dict(sizes)
    self.timeout = timeout
    # `name` and `versions` as the worker reports them.
    self.description: dict[str, Any] = {}
    self._process: subprocess.Popen[str] | None = None
    self._errors: Any = None

  def generate(
    self,
    prompt_ids: Sequence[Sequence[int]],
    num_tokens: int,
    temperature: float,
    seed: int,
  ) -> float:
    """Returns the seconds of a call without compilation, from ids to ids.

    Each prompt gets all of the tokens.
    """
    answer = self._request(prompt_ids, num_tokens, temperature, seed)
    return float(answer["seconds"])

  def check(
    self,
    prompt_ids: Sequence[Sequence[int]],
    num_tokens: int,
    temperature: float,
    seed: int,
  ) -> dict[str, Any]:
    """Compares what was generated with the peer's own pass without a cache.

    Returns:
      `completion_ids`; `greedy`, the share of tokens that are the argmax;
      `surprisal`, the mean −log p of the tokens, nats; and `entropy`, its
      expectation if tokens are drawn from the whole vocabulary at temperature
      1, nats.
    """
    return self._request(
      prompt_ids, num_tokens, temperature, seed, is_checked=True
    )

  def close(self) -> None:
    """Ends the worker; the next request starts another one."""
    process, self._process = self._process, None
    if process is None:
      return
    with process:
      # The worker ends when its input does; if it does not, it is killed.
      assert process.stdin is not None
      try:
        process.stdin.close()
        process.wait(timeout=10)
      except (BrokenPipeError, subprocess.TimeoutExpired):
        process.kill()
    self._errors.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _request(
    self,
    prompt_ids: Sequence[Sequence[int]],
    num_tokens: int,
    temperature: float,
    seed: int,
    *,
    is_checked: bool = False,
  ) -> dict[str, Any]:
    lengths = {len(ids) for ids in prompt_ids}
    if len(lengths) != 1:
      raise ValueError(f"prompts must have one length, not {sorted(lengths)}")
    if self._process is None:
      self._start()
    assert self._process is not None
    assert self._process.stdin is not None
    request = {
      "prompt_ids": [list(map(int, ids)) for ids in prompt_ids],
      "num_tokens": num_tokens,
      "temperature": temperature,
      "seed": seed,
      "is_checked": is_checked,
    }
    try:
      self._process.stdin.write(json.dumps(request) + "\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      raise self._failure("died") from None
    answer = self._answer()
    expected = len(prompt_ids) * num_tokens
    if answer["num_tokens"] != expected:
      self.close()
      raise PeerError(
        f"{self.name} generated {answer['num_tokens']} tokens, not {expected}"
      )
    return answer

  def _start(self) -> None:
    if not self.python.exists():
      raise PeerError(
        f"{self.name} is not installed: there is no {self.python}. In the "
        f"repository's root run\n  {commands(self.name)}"
      )
    # A peer runs as its library would by default, whatever was set for us.
    environment = {
      name: value
      for name, value in os.environ.items()
      if name not in ("PYTHONPATH", "PYTHONHOME", "XLA_FLAGS")
    }
    self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
    self._process = subprocess.Popen(
      [str(self.python), *self.program, json.dumps(self.sizes)],
      cwd=ROOT,
      env=environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
    )
    self.description = self._answer()

  def _answer(self) -> dict[str, Any]:
    process = self._process
    assert process is not None
    assert process.stdout is not None
    late = threading.Event()

    def stop() -> None:
      late.set()
      process.kill()

    timer = threading.Timer(self.timeout, stop)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    if not line:
      if late.is_set():
        raise self._failure(f"gave no answer within {self.timeout:g} s")
      raise self._failure("died")
    return json.loads(line)

  def _failure(self, what: str) -> PeerError:
    """Ends the worker; returns an error with its last output."""
    assert self._process is not None
    self._process.kill()
    code = self._process.wait()
    self._errors.seek(0)
    said = "".join(self._errors.readlines()[-20:])
    self.close()
    return PeerError(f"{self.name} {what} (exit code {code}):\n{said}")
