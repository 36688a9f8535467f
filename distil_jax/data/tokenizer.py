"""Tokenizers in the Hugging Face format, loaded or trained.

They need only the tokenizers of transformers, and not torch.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from distil_jax.data import chat_templates, end_tokens
from distil_jax.data.end_tokens import GENERATION_CONFIG, TokenizerError
from distil_jax.types import Message

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")
# Every call of `apply_chat_template` has these arguments.
_RENDERING = {
  "tokenize": True,
  "add_generation_prompt": True,
  "return_dict": False,
}

CHAT_TEMPLATE = chat_templates.CHATML
# Merges stay within these pieces: words, single digits and runs of signs, each
# with the space before it; and other white space.
_PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A tokenizer with a chat template.

  Attributes:
    backend: the transformers tokenizer that does the work.
    eos_ids: tokens that end a completion; the first is the tokenizer's own.
    pad_id: the padding token, which is always masked.
    template_kwargs: settings of the chat template for every prompt.
  """

  backend: transformers.PreTrainedTokenizerFast
  eos_ids: tuple[int, ...]
  pad_id: int
  template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def load(
    cls,
    directory: str | pathlib.Path,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
  ) -> "Tokenizer":
    """Reads a tokenizer from a Hugging Face directory.

    A completion ends at the tokenizer's end token, at each one that
    `generation_config.json` and `config.json` name, and at the one with which
    the chat template ends an assistant's turn.

    Args:
      directory: holds `tokenizer.json`, `tokenizer_config.json` and a chat
        template.
      template_kwargs: settings of the chat template for every prompt, such as
        `enable_thinking`.

    Raises:
      TokenizerError: the directory or a file in it is missing or unreadable,
        there is no chat template or no end token.
    """
    directory = pathlib.Path(directory)
    backend = _load_backend(directory)
    if not backend.chat_template:
      raise TokenizerError(
        f"the tokenizer in {directory} has no chat template; add "
        "chat_template.jinja, or take the model's instruct version"
      )
    eos_id = cast(int | None, backend.eos_token_id)
    pad_id = cast(int | None, backend.pad_token_id)
    eos_ids = [] if eos_id is None else [eos_id]
    eos_ids += end_tokens.of_files(directory)
    taken = sorted(_RENDERING.keys() & (template_kwargs or {}).keys())
    if taken:
      raise TokenizerError(
        f"chat_template_kwargs sets {', '.join(taken)}, which is fixed; remove "
        "it"
      )
    if not eos_ids:
      raise TokenizerError(
        f"no end token: set eos_token in {directory}/tokenizer_config.json or "
        f"eos_token_id in {directory}/{GENERATION_CONFIG}"
      )
    found = cls(
      backend=backend,
      eos_ids=tuple(dict.fromkeys(eos_ids)),
      pad_id=eos_ids[0] if pad_id is None else pad_id,
      template_kwargs=dict(template_kwargs or {}),
    )
    if found.end_id in found.eos_ids:
      return found
    return dataclasses.replace(found, eos_ids=(*found.eos_ids, found.end_id))

  def check_template(self, roles: Sequence[str]) -> None:
    """Checks that the template keeps the messages of all these roles.

    Some templates leave out system messages, so that the model would not see
    its task, or do not open the assistant's turn.

    Args:
      roles: the roles of one conversation, in order.

    Raises:
      TokenizerError: the template refuses a role, drops its message, or leaves
        out the marker of the assistant's turn.
    """
    fault = chat_templates.marker_fault(self._rendered)
    if fault:
      raise TokenizerError(fault)
    messages = [
      {"role": role, "content": f"content-{place}-"}
      for place, role in enumerate(roles)
    ]
    text = self._render(messages, tokenize=False)
    dropped = [m["role"] for m in messages if m["content"] not in text]
    if dropped:
      raise TokenizerError(
        f"the chat template leaves out what {' and '.join(dropped)} says; "
        "correct chat_template.jinja, or leave such messages out of the data"
      )

  def _rendered(self, messages: Sequence[Message], is_open: bool) -> str | None:
    """Returns a conversation as text, or None if the template refuses it."""
    try:
      text = self._render(
        messages, tokenize=False, add_generation_prompt=is_open
      )
    except TokenizerError:
      return None
    return cast(str, text)

  def encode_messages(
    self, messages: Sequence[Message], **template_kwargs: Any
  ) -> list[int]:
    """Returns the prompt's ids, including the marker of the assistant's turn.

    Args:
      messages: the conversation; the text of a special token in it becomes
        that token, see `escape_special_tokens`.
      **template_kwargs: settings of the chat template that replace the stored
        ones.

    Raises:
      TokenizerError: the template refuses the messages, or is not a template.
    """
    return cast(list[int], self._render(messages, **template_kwargs))

  def tokens_around(self, roles: Sequence[str]) -> tuple[list[int], list[int]]:
    """Returns the ids before and after a message between two turns.

    They reach from the end of the assistant's turn to the marker of the next.
    The message has the first of the roles that the template shows.

    Raises:
      TokenizerError: it shows none of them.
    """
    for role in roles:
      try:
        return self._around(role)
      except TokenizerError as error:
        refusal = error
    raise TokenizerError(
      f"the chat template cannot put a message of {roles[0]} after a turn "
      f"({refusal}); correct chat_template.jinja, or sample one turn only"
    )

  def _around(self, role: str) -> tuple[list[int], list[int]]:
    answer, output = "content-of-assistant-", f"content-of-{role}-"
    messages = [
      {"role": "user", "content": "content-of-problem-"},
      {"role": "assistant", "content": answer},
      {"role": role, "content": output},
    ]
    text = cast(str, self._render(messages, tokenize=False))
    _, *rest = text.split(answer)
    parts = rest[0].split(output) if len(rest) == 1 else []
    if len(parts) != 2:
      raise TokenizerError(f"it does not show the message of {role} once")
    before, after = (
      # No token may mark the beginning of a text in the middle of a
      # conversation.
      self.backend.encode(part, add_special_tokens=False)
      for part in parts
    )
    return before, after

  def _render(self, messages: Sequence[Message], **settings: Any) -> Any:
    try:
      return self.backend.apply_chat_template(
        [dict(message) for message in messages],
        **{**_RENDERING, **self.template_kwargs, **settings},
      )
    except chat_templates.FAILURES as error:
      roles = ", ".join(str(message.get("role")) for message in messages)
      raise TokenizerError(
        f"the chat template cannot render messages of {roles}: {error!r}"
      ) from error

  def encode(self, text: str) -> list[int]:
    """Returns the ids of plain text, which contain no special token.

    Text of a model or a file therefore cannot end a turn by spelling the end
    token.
    """
    return self.backend.encode(
      text, add_special_tokens=False, split_special_tokens=True
    )

  def escape_special_tokens(self, text: str) -> str:
    """Returns the text with a zero-width space in each special token's text.

    It is for text of a model that becomes part of a message, where a special
    token could end the turn and begin one of another role.
    """
    if self._special is None:
      return text
    return self._special.sub(lambda m: f"{m[0][0]}\u200b{m[0][1:]}", text)

  @functools.cached_property
  def special_ids(self) -> dict[str, int]:
    """The ids of all special tokens by their texts."""
    added = self.backend.added_tokens_decoder.items()
    return {x.content: token for token, x in added if x.special}

  @functools.cached_property
  def end_id(self) -> int:
    """The token that ends an assistant's turn, as the chat template does."""
    found = None
    if self.backend.chat_template:
      found = end_tokens.of_template(self._rendered, self.special_ids)
    return self.eos_ids[0] if found is None else found

  @property
  def end_texts(self) -> list[str]:
    """The texts of the tokens that end a completion."""
    return [self.decode([x], skip_special=False) for x in self.eos_ids]

  @functools.cached_property
  def _special(self) -> re.Pattern[str] | None:
    """A pattern of all special tokens' texts; None if there are none."""
    texts = {text for text in self.special_ids if len(text) > 1}
    # The first alternative that matches wins, and one special token may begin
    # with the text of another.
    longest_first = sorted(texts, key=len, reverse=True)
    return (
      re.compile("|".join(map(re.escape, longest_first))) if texts else None
    )

  def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
    """Returns the text of the ids with its spaces unchanged.

    Args:
      ids: tokens of this vocabulary.
      skip_special: leave out special tokens such as the end token.
    """
    text = self.backend.decode(
      [int(token) for token in ids],
      skip_special_tokens=skip_special,
      clean_up_tokenization_spaces=False,
    )
    return cast(str, text)

  @functools.cached_property
  def vocab_size(self) -> int:
    """The largest id plus one, the fewest rows an embedding can have."""
    return max(self.backend.get_vocab().values()) + 1

  @functools.cached_property
  def longest_token(self) -> int:
    """The largest number of characters that one token can stand for."""
    # A vocabulary spells a token by its bytes or by its characters.
    return max(map(len, self.backend.get_vocab()))

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes the tokenizer so that `load` and transformers read it back.

    All end tokens go into `generation_config.json`; its other settings are
    kept.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    self.backend.save_pretrained(directory)
    path = directory / GENERATION_CONFIG
    settings = end_tokens.read_json(path) if path.exists() else {}
    settings["eos_token_id"] = list(self.eos_ids)
    settings["pad_token_id"] = self.pad_id
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def train(
  texts: Iterable[str],
  *,
  vocab_size: int,
  chat_template: str = CHAT_TEMPLATE,
) -> Tokenizer:
  """Trains a byte-level BPE tokenizer; equal texts give equal tokenizers.

  Every text can be encoded and decoded unchanged. No token has more than one
  digit (it may have the space before it), so that a number has the same tokens
  everywhere.

  Args:
    texts: the texts to learn merges from. The names of the roles are added to
      each of them, so that a turn costs few tokens.
    vocab_size: the largest number of tokens; there are fewer if the texts have
      nothing left to merge.
    chat_template: Jinja source.

  Raises:
    ValueError: `vocab_size` has no room for all bytes and the special tokens.
  """
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  special = [PAD, START, END]  # the position of each is its id
  smallest = len(alphabet) + len(special)
  if vocab_size < smallest:
    raise ValueError(
      f"vocab_size={vocab_size} must be at least {smallest}: "
      f"{len(alphabet)} bytes and {len(special)} special tokens"
    )
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=special,
    initial_alphabet=alphabet,
    show_progress=False,
  )
  tokenizer.train_from_iterator(_with_roles(texts), trainer)
  backend = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    eos_token=END,
    pad_token=PAD,
    extra_special_tokens=[START],
    clean_up_tokenization_spaces=False,
  )
  backend.chat_template = chat_template
  return Tokenizer(
    backend=backend,
    eos_ids=(special.index(END),),
    pad_id=special.index(PAD),
  )


def _with_roles(texts: Iterable[str]) -> Iterator[str]:
  for text in texts:
    yield text
    yield from ROLES


def _load_backend(
  directory: pathlib.Path,
) -> transformers.PreTrainedTokenizerFast:
  if not directory.is_dir():
    raise TokenizerError(f"there is no model directory {directory}")
  for name in ("tokenizer.json", "tokenizer_config.json"):
    if not (directory / name).is_file():
      raise TokenizerError(f"{directory} has no {name}")
    end_tokens.read_json(directory / name)
  try:
    # AutoTokenizer would take the class that tokenizer_config.json names, which
    # may split text in another way than tokenizer.json says.
    backend = transformers.PreTrainedTokenizerFast.from_pretrained(
      directory, local_files_only=True
    )
    # Some parts are first read when a text is encoded.
    backend.decode(backend.encode("a 1"))
  except (KeyboardInterrupt, SystemExit):
    raise
  # The kind that tokenizers raises; a panic of its Rust code is no Exception.
  except BaseException as error:
    raise TokenizerError(
      f"{directory}/tokenizer.json cannot be read: {error!r}"
    ) from error
  end_tokens.check_longest(directory, backend.model_max_length)
  return backend
