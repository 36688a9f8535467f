"""Serves a report on this machine, as the runs are now."""

import hashlib
import http.server
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

from distil_jax.analysis.report import page, run_record
from distil_jax.analysis.report.markup import escape
from distil_jax.training import lock_owner
from distil_jax.training.logging import run_folder
from distil_jax.training.logging.tables import ReportError

_HOST = "127.0.0.1"
# What a page is made of; a lock's time says nothing, only that it is there.
_FILES = (
  run_record.CONFIG,
  run_folder.METRICS,
  run_folder.EVALUATIONS,
  run_folder.SUMMARY,
  "rollouts",
  run_record.SAMPLES,
)


class PageServer(http.server.ThreadingHTTPServer):
  """Answers `GET /` with the page, and 304 if nothing has changed.

  It is reached from this machine alone.
  """

  daemon_threads = True  # a browser may keep its connection open

  def __init__(self, folders: Sequence[pathlib.Path], port: int):
    """Binds the port.

    Args:
      folders: run folders, or folders of run folders.
      port: 0 takes a free one.

    Raises:
      ReportError: the port is in use.
    """
    self._folders = folders
    self._made: tuple[str, bytes] | None = None
    # Two tabs that ask at once share the work.
    self._making = threading.Lock()
    try:
      super().__init__((_HOST, port), _Handler)
    except OSError as error:
      raise ReportError(
        f"port {port} cannot be used ({error.strerror}); choose another with "
        "--port, or 0 for a free one"
      ) from error

  @property
  def url(self) -> str:
    """The page's address."""
    return f"http://{_HOST}:{self.server_address[1]}/"

  def page(self, known: str | None) -> tuple[str, bytes | None]:
    """Returns the version of the page and the page.

    Args:
      known: the version that a client has; of that one no page is returned.

    Raises:
      ReportError: a run folder is damaged or gone.
    """
    version = self.version()
    if known == version:
      return version, None
    with self._making:
      if self._made is None or self._made[0] != version:
        runs = page.read_runs(self._folders)
        text = page.to_page(runs, version=version)
        self._made = version, text.encode("utf-8")
      return self._made

  def version(self) -> str:
    """Returns a name of the state of all files that the page shows."""
    digest = hashlib.sha256()
    for folder in self._folders:
      for run in run_record.find_runs(folder):
        is_running = lock_owner.find(run) is not None
        digest.update(f"{run} {is_running}\n".encode())
        for name in _FILES:
          path = run / name
          if path.exists():
            state = path.stat()
            line = f"{name} {state.st_mtime_ns} {state.st_size}\n"
            digest.update(line.encode())
    return f'"{digest.hexdigest()[:16]}"'


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers one connection."""

  server: PageServer
  protocol_version = "HTTP/1.1"
  timeout = 60

  def do_GET(self) -> None:
    """Answers with the page."""
    # A page elsewhere whose name leads to this machine must not read the runs.
    host = (self.headers.get("Host") or "").rpartition(":")[0]
    if host not in (_HOST, "localhost"):
      self._answer(403, "text/plain", b"ask for 127.0.0.1\n")
    elif self.path.partition("?")[0] != "/":
      self._answer(404, "text/plain", b"there is only /\n")
    else:
      self._answer_page()

  def _answer_page(self) -> None:
    try:
      version, text = self.server.page(self.headers.get("If-None-Match"))
    except (ReportError, OSError) as error:
      self._answer(503, "text/html", f"<p>{escape(error)}</p>".encode())
      return
    if text is None:
      self._answer(304, None, b"", version)
    else:
      self._answer(200, "text/html", text, version)

  def _answer(
    self, status: int, kind: str | None, text: bytes, version: str | None = None
  ) -> None:
    self.send_response(status)
    if kind is not None:
      self.send_header("Content-Type", f"{kind}; charset=utf-8")
      self.send_header("Content-Length", str(len(text)))
    if version is not None:
      self.send_header("ETag", version)
    self.send_header("Cache-Control", "no-cache")
    self.end_headers()
    self.wfile.write(text)

  def log_message(self, format: str, *args: Any) -> None:
    """Says nothing: a page asks every few seconds."""
