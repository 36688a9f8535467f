import pytest

from tests.analysis.report import made_up_runs


@pytest.fixture(scope="session")
def runs_folder(tmp_path_factory):
  """Two learning rates with two seeds each; the last run was stopped."""
  folder = tmp_path_factory.mktemp("runs")
  for rate in (1e-5, 3e-5):
    for seed in (0, 1):
      made_up_runs.write_run(
        folder / f"rate{rate:g}_seed{seed}",
        seed=seed,
        learning_rate=rate,
        is_finished=(rate, seed) != (3e-5, 1),
      )
  return folder
