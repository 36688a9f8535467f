"""What stands between tags in a completion."""


def last(text: str, name: str) -> str | None:
  """What stands in the last pair of `<name>…</name>`; None: there is none.

  Of nested tags the innermost counts, and a tag that is never closed does not.
  In time linear in the length of the text.
  """
  opening, closing = f"<{name}>", f"</{name}>"
  last_close = text.rfind(closing)
  start = text.rfind(opening, 0, max(last_close, 0))
  if start < 0:
    return None
  start += len(opening)
  return text[start : text.find(closing, start)]
