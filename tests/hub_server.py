"""A server on this machine that answers as the Hugging Face Hub does.

It knows what downloading a model asks for: the commit of a revision, the list
of its files, and the files.
"""

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse
from collections.abc import Iterator, Mapping

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
  """Holds models, and says how it fails.

  Attributes:
    models: Folder of each model's files, by OWNER/NAME.
    gated: Models whose files need a token.
    broken: Files of which half is sent, without an end.
    requests: Method and path of each request.
    token: Opens the gated models.
  """

  def __init__(self, models: Mapping[str, pathlib.Path]):
    self.models = dict(models)
    self.gated: set[str] = set()
    self.broken: set[str] = set()
    self.requests: list[tuple[str, str]] = []
    self.token = "hf_right"
    self.url = ""

  def downloads(self) -> list[str]:
    """Returns the files that were sent, in order of their names."""
    return sorted(
      path.rsplit("/", 1)[1]
      for method, path in self.requests
      if method == "GET" and "/resolve/" in path
    )


@contextlib.contextmanager
def served(models: Mapping[str, pathlib.Path]) -> Iterator[Hub]:
  """Runs a server within the block."""
  hub = Hub(models)
  handler = type("Handler", (_Handler,), {"hub": hub})
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  hub.url = f"http://127.0.0.1:{server.server_port}"
  thread = threading.Thread(
    target=server.serve_forever, args=[0.02], daemon=True
  )
  thread.start()
  try:
    yield hub
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  hub: Hub
  protocol_version = "HTTP/1.1"

  def log_message(self, *arguments) -> None:
    del arguments

  def do_HEAD(self) -> None:
    self._answer()

  def do_GET(self) -> None:
    self._answer()

  def _answer(self) -> None:
    path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
    self.hub.requests.append((self.command, path))
    words = path.strip("/").split("/")
    if len(words) < 5 or (words[0] == "api" and len(words) < 6):
      # The library also asks for what has nothing to do with a model.
      self._refuse(404, "NotFound")
      return
    if words[:2] == ["api", "models"]:
      name, kind, revision = "/".join(words[2:4]), words[4], words[5]
    else:
      name, kind, revision = "/".join(words[:2]), words[2], words[3]
    folder = self.hub.models.get(name)
    if folder is None:
      # The Hub does not tell whether a private model exists.
      self._refuse(401, "RepoNotFound")
    elif revision not in ("main", "v1", COMMIT):
      self._refuse(404, "RevisionNotFound")
    elif kind == "revision":
      self._send_json({"id": name, "sha": COMMIT, "siblings": []})
    elif kind == "tree":
      self._send_json([_entry(path) for path in sorted(folder.iterdir())])
    elif name in self.hub.gated and (
      self.headers.get("Authorization") != f"Bearer {self.hub.token}"
    ):
      self._refuse(401, "GatedRepo")
    elif not (folder / words[4]).is_file():
      self._refuse(404, "EntryNotFound")
    else:
      self._send_file(folder / words[4])

  def _refuse(self, status: int, code: str) -> None:
    self.send_response(status)
    self.send_header("X-Error-Code", code)
    self.send_header("X-Error-Message", code)
    self.send_header("Content-Length", "0")
    self.end_headers()

  def _send_json(self, value) -> None:
    content = json.dumps(value).encode()
    self.send_response(200)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def _send_file(self, path: pathlib.Path) -> None:
    content = path.read_bytes()
    is_broken = path.name in self.hub.broken and self.command == "GET"
    sent = content[: len(content) // 2] if is_broken else content
    self.send_response(200)
    self.send_header("ETag", f'"{_digest(content)}"')
    self.send_header("X-Repo-Commit", COMMIT)
    self.send_header("Content-Length", str(len(sent)))
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(sent)


def _digest(content: bytes) -> str:
  return hashlib.sha1(content).hexdigest()


def _entry(path: pathlib.Path) -> dict:
  content = path.read_bytes()
  return {
    "type": "file",
    "path": path.name,
    "size": len(content),
    "oid": _digest(content),
  }
