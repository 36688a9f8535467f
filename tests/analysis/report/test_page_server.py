"""`watch`: the page on this machine, only if it is new."""

import contextlib
import html
import http.client
import shutil
import threading

import pytest

from distil_jax.analysis.report import page_server
from distil_jax.training.logging.tables import ReportError


@pytest.fixture
def served(runs_folder, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(runs_folder / "rate1e-05_seed0", folder)
  with page_server.PageServer([folder], 0) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield folder, server
    server.shutdown()
    thread.join()


def ask(server, path="/", **headers):
  port = server.server_address[1]
  with contextlib.closing(
    http.client.HTTPConnection("127.0.0.1", port, timeout=20)
  ) as connection:
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.headers["ETag"], answer.read().decode()


def test_a_page_is_sent_again_only_if_a_file_has_changed(served):
  folder, server = served
  status, version, text = ask(server)
  assert status == 200
  assert f'data-live="{html.escape(version)}"' in text
  assert ask(server, **{"If-None-Match": version})[::2] == (304, "")
  with (folder / "metrics.jsonl").open("a") as file:
    file.write('{"step": 13, "reward": 0.5}\n')
  status, newer, text = ask(server, **{"If-None-Match": version})
  assert status == 200
  assert newer != version
  assert "<dd>13</dd>" in text


def test_others_and_other_pages_are_refused(served):
  _, server = served
  assert ask(server, Host="evil.example:80")[0] == 403
  assert ask(server, "/metrics.jsonl")[0] == 404


def test_a_damaged_run_is_told_and_the_server_stays(served):
  folder, server = served
  whole = (folder / "metrics.jsonl").read_text()
  (folder / "metrics.jsonl").write_text("nonsense\n")
  status, _, text = ask(server)
  assert status == 503
  assert "is not a JSON object" in text
  (folder / "metrics.jsonl").write_text(whole)
  assert ask(server)[0] == 200


def test_a_port_in_use_is_told(served):
  folder, server = served
  with pytest.raises(ReportError, match="choose another with --port"):
    page_server.PageServer([folder], server.server_address[1])
