"""How feedback quotes what a completion says."""


def shortened(text: str, length: int = 40) -> str:
  """At most so many characters, and a sign where some are left out."""
  return text if len(text) <= length else f"{text[:length]}…"
