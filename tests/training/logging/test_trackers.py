"""What is sent to Weights & Biases and trackio."""

import sys
import types

import pytest

from distil_jax import config
from distil_jax.training.logging import trackers
from distil_jax.training.logging.rollout_pages import Sample
from distil_jax.types import Problem, Status, StopReason, Verdict

SAMPLE = Sample(
  problem=Problem(0, ({"role": "user", "content": "1 + 1?"},), "2"),
  completion="3",
  num_tokens=2,
  stop_reason=StopReason.EOS,
  verdict=Verdict(0.0, "It is 2.", Status.WRONG),
)


@pytest.fixture
def calls(monkeypatch):
  """Replaces both packages by ones that write down what they are told."""
  found = []
  for name in ("wandb", "trackio"):
    module = types.ModuleType(name)
    for call in ("init", "log", "finish"):

      def record(*values, _name=name, _call=call, **named):
        found.append((_name, _call, values, named))

      setattr(module, call, record)
    module.Table = lambda columns, data: (tuple(columns), data)
    monkeypatch.setitem(sys.modules, name, module)
  return found


def settings(tmp_path, **logging):
  return config.parse(
    {
      "name": "mine",
      "train": {"run_directory": str(tmp_path)},
      "logging": logging,
    }
  )


def tell(settings, **arguments):
  told = trackers.Trackers(settings, is_writer=True, **arguments)
  told.start()
  told.log(1, {"reward": 0.5, "loss": None})
  told.log(1, {"avg@4": 0.25}, prefix="evaluation/")
  told.samples(1, [SAMPLE])
  told.close()
  told.close()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_is_told_metrics_samples_and_the_end(calls, tmp_path, name):
  tell(settings(tmp_path, **{name: {"project": "sums"}}))
  assert {service for service, *_ in calls} == {name}
  (_, _, _, opened), *logged, last = calls
  assert opened["project"] == "sums"
  assert opened["name"] == "mine"
  assert opened["config"]["train"]["run_directory"] == str(tmp_path)
  sent = [values[0] for _, _, values, _ in logged]
  assert all(named == {"step": 1} for *_, named in logged)
  assert sent[:2] == [{"reward": 0.5}, {"evaluation/avg@4": 0.25}]
  columns, rows = sent[2]["rollouts"]
  assert dict(zip(columns, rows[0], strict=True)) == {
    "problem": "1 + 1?",
    "completion": "3",
    "reward": 0.0,
    "status": "wrong",
    "feedback": "It is 2.",
  }
  assert last[1] == "finish"


def test_a_resumed_run_keeps_its_id_and_a_new_one_has_another(calls, tmp_path):
  offline = settings(tmp_path, wandb={"mode": "offline"})

  def identity():
    calls.clear()
    tell(offline)
    assert calls[0][3]["mode"] == "offline"
    return calls[0][3]["id"]

  first, again = identity(), identity()
  assert first != again
  (tmp_path / "checkpoints" / "20").mkdir(parents=True)
  assert identity() == again


def test_nothing_is_told_without_a_setting_or_by_another_process(
  calls, tmp_path
):
  tell(settings(tmp_path))
  trackers.Trackers(settings(tmp_path, wandb={}), is_writer=False).start()
  assert calls == []


def test_a_missing_package_is_named(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "trackio", None)
  with pytest.raises(config.ConfigError, match="pip install trackio"):
    trackers.Trackers(settings(tmp_path, trackio={}), is_writer=True)
