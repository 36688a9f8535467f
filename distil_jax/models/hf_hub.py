"""Finds models of the Hugging Face Hub in its local cache, or downloads them.

The cache, the server and the token are those of `huggingface_hub`: see
`HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`.
"""

import pathlib
import re

import huggingface_hub
from huggingface_hub import constants, errors

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_CONFIG = "config.json"
# What loading and exporting read; other formats of the weights can be as large.
_FILES = (
  _CONFIG,
  "generation_config.json",
  "model*.safetensors",
  "model.safetensors.index.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "*.jinja",
)


class HubError(RuntimeError):
  """Says why a model of the Hub is not here, and what to do."""


def is_name(text: str) -> bool:
  """Returns True if a text has the form OWNER/NAME of a model on the Hub."""
  return _NAME.fullmatch(text) is not None


def fetch(
  name: str,
  revision: str | None = None,
  *,
  only_config: bool = False,
  only_cached: bool = False,
) -> pathlib.Path:
  """Returns the folder of a model, after downloading what is not cached.

  If the Hub cannot be reached, a complete copy in the cache serves.

  Args:
    name: OWNER/NAME.
    revision: A branch, a tag or a commit; None means `main`.
    only_config: Fetch `config.json` alone.
    only_cached: Do not ask the Hub.

  Raises:
    HubError: The model, its revision, access to it or the Hub is missing, or
      the download broke off.
  """
  try:
    folder = huggingface_hub.snapshot_download(
      name,
      revision=revision,
      allow_patterns=[_CONFIG] if only_config else list(_FILES),
      local_files_only=only_cached,
    )
  # Next to the errors of the library and of the system there are those of the
  # HTTP client, which differs between its versions.
  except Exception as error:
    raise HubError(_explanation(name, revision, error)) from error
  path = pathlib.Path(folder)
  if not (path / _CONFIG).is_file():
    raise HubError(
      f"{name} on the Hub has no {_CONFIG}: it is no model for transformers; "
      "choose another model.directory"
    )
  return path


def _explanation(name: str, revision: str | None, error: Exception) -> str:
  """Returns a message for an error of the library, with the cure."""
  page = f"{constants.ENDPOINT}/{name}"
  log_in = (
    "log in with `hf auth login` or set HF_TOKEN, with an account that has "
    "access"
  )
  if isinstance(error, errors.GatedRepoError):
    return f"{name} is gated: accept its terms at {page}, then {log_in}"
  if isinstance(error, errors.RepositoryNotFoundError):
    return (
      f"there is no folder {name} here, and no model of this name at {page}; "
      f"correct model.directory. If the model is private, {log_in}"
    )
  if isinstance(error, errors.RevisionNotFoundError):
    return (
      f"model.revision={revision or constants.DEFAULT_REVISION}: {name} has no "
      f"such branch, tag or commit; see {page}/commits/main"
    )
  if isinstance(error, errors.HFValidationError):
    return (
      f"there is no folder {name} here, and the name is none that the Hub "
      f"allows; correct model.directory ({error})"
    )
  if isinstance(error, errors.LocalEntryNotFoundError):
    return _unreachable(name, revision, error)
  reason = str(error).strip().splitlines() or [repr(error)]
  return (
    f"the download of {name} from {page} failed ({type(error).__name__}: "
    f"{reason[0]}); run the same command again, which keeps the files that are "
    f"complete. They are in {constants.HF_HUB_CACHE}: is there space?"
  )


def _unreachable(name: str, revision: str | None, error: Exception) -> str:
  if constants.HF_HUB_OFFLINE:
    why = "HF_HUB_OFFLINE is set"
    cure = "unset it once"
  else:
    cause = error.__cause__ or error
    why = f"the Hub at {constants.ENDPOINT} cannot be reached ({cause})"
    cure = "check the network, HF_ENDPOINT and the proxy"
  of = f" of revision {revision}" if revision else ""
  return (
    f"there is no folder {name} here, {why}, and the cache in "
    f"{constants.HF_HUB_CACHE} has no complete copy{of}: {cure}, or run `hf "
    f"download {name} --local-dir FOLDER` elsewhere, copy FOLDER here and set "
    "model.directory=FOLDER"
  )
