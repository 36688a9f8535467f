"""Removes from an answer all that changes how it looks and not what it says."""

import re
import unicodedata

# Signs that are typed, and their LaTeX.
_SIGNS = {
  "−": "-",
  "–": "-",
  "×": "\\times ",
  "·": "\\cdot ",
  "⋅": "\\cdot ",
  "÷": "\\div ",
  "π": "\\pi ",
  "∞": "\\infty ",
  "≤": "\\le ",
  "≥": "\\ge ",
  "≠": "\\ne ",
  "±": "\\pm ",
  "∪": "\\cup ",
  "∩": "\\cap ",
  "∅": "\\emptyset ",
  "∈": "\\in ",
  "θ": "\\theta ",
  "°": "^\\circ ",
  "º": "^\\circ ",
  "…": "\\ldots ",
  "⁄": "/",
  "∕": "/",
  "％": "%",
}
_SIGN = re.compile("|".join(_SIGNS))
_HIGH = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_LOW = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_ROOT = re.compile(r"√\s*(?:\(([^()]{1,100})\)|(\d{1,40}|[a-z]))")
_STYLE = re.compile(
  r"\\(?:tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge"
  r"|Huge|displaystyle|textstyle|scriptstyle|rm|bf|it|bfseries|itshape|limits"
  r"|left|right|[bB]igg?[lr]?|phantom\{\})(?![A-Za-z])"
  # A dot is an invisible bracket.
  r"(?:(?<=left)\.|(?<=right)\.)?\s*"
)
# A backslash after another one ends a row of a matrix and is no space.
_SPACE = re.compile(
  r"(?<!\\)\\[;: ]|\\q?quad(?![A-Za-z])|\\space(?![A-Za-z])|~|\s+"
)
_THIN = re.compile(r"(?<!\\)\\[,!]|\{\}")
_ROW_END = re.compile(r"(\\\\)\s*\[[\d.]+ ?(?:mm|cm|pt|ex|em)\]")
# Commands that show a sign, an empty place or a number of an equation.
_SILENT = re.compile(
  r"\\(?:tag\*?|hspace\*?|vspace\*?|[vh]?phantom)\s*\{[^{}]*\}"
  r"|\\(?:checkmark|blacksquare|qed)(?![A-Za-z])|\\ldotp(?![A-Za-z])"
  r"|\\text\s*\{\s*[.,;]?\s*\}"
)
_ENVIRONMENT = re.compile(
  r"\\begin\{(aligned|align\*?|gathered|equation\*?)\}(.*)\\end\{\1\}",
  re.DOTALL,
)
# Words before an answer that say nothing of it.
_LEAD_WORDS = re.compile(
  r"(?P<open>\\text\s*\{\s*)?(?:(?:the )?(?:final )?answer(?: is\b)?:?|exactly"
  r"|about|approximately|approx\.|roughly|only)(?:\s(?![a-z]*\s*=)|(?=[}$\\]))"
  r"\s*(?(open)\}\s*)",
  re.IGNORECASE,
)
_PI = re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])")
_TYPED_ROOT = re.compile(r"(?<![A-Za-z\\])sqrt(?=\{)")
_TYPED_POWER = re.compile(r"(?<=[\w)}])\*\*\s*(?:(-?\d+|[a-z])(?!\w)|(?=\())")
_CHOOSE = re.compile(r"(\w+) ?\\choose ?(\w+)")
_NAMED_SIGNS = {
  "langle": "(",
  "rangle": ")",
  "textdollar": "\\$",
  "pounds": "£",
  "euro": "€",
  "yen": "¥",
}
_NAMED_SIGN = re.compile(rf"\\({'|'.join(_NAMED_SIGNS)})(?![A-Za-z])\s*")
_COMMA = re.compile(r"\{,\}")
_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SHORT_FRAC = re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)")
_VALUES = re.compile(r"\d|,|\b(?:and|or)\b")
_DEGREE = re.compile(
  r"\s*(?:\^\s*\\circ(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}|\\degrees?(?![A-Za-z]))"
)
# Commands whose content counts, and those whose content is text.
_FONT = re.compile(
  r"\\(?:mathbf|boldsymbol|bm|pmb|underline|uline|fbox|boxed|mbox|textnormal"
  r"|mathnormal|ensuremath|emph)\s*\{([^{}]*)\}"
  r"|\\textcolor\s*\{[^{}]*\}\s*\{([^{}]*)\}|\\color\s*\{[^{}]*\}"
  r"|\\(?:mathbf|boldsymbol|mathrm)\s+(?P<token>\w)"
)
_TEXT = re.compile(
  r"\\(?:text|textbf|textit|textrm|texttt|textsf|mathrm|mathit|operatorname"
  r"|mathsf|mathtt)\s*\{([^{}]*)\}"
)
_WRAPPED = (
  re.compile(r"\$\$(.+)\$\$", re.DOTALL),
  re.compile(r"\$([^$]+)(?<!\\)\$"),
  re.compile(r"\\\((.+)\\\)", re.DOTALL),
  re.compile(r"\\\[(.+)\\\]", re.DOTALL),
  re.compile(r"\*\*(.+)\*\*", re.DOTALL),
  re.compile(r"\{([^{}]*)\}"),
  re.compile(r"`([^`]+)`"),
)
_LEAD = re.compile(
  r"(?:=|\\approx(?![A-Za-z])|≈|\\Rightarrow|\\implies|\\therefore|:)\s*"
)
_END = re.compile(r"(?:\s|\\\\|(?<!\.)\.|[;,])+\Z")
_SET_BUILDER = re.compile(
  r"\\\{ ?[a-z] ?(?:\\in ?\\mathbb ?\{?R\}? ?)?(?:\\mid|:|\\colon|\|) ?"
  r"([^|:{}]+)\\\}"
)
_SCIENTIFIC = re.compile(r"(?<![\w\\{}])(\d*\.?\d+)[eE]([-+]?\d{1,4})(?!\w)")


def plain(text: str) -> str:
  """Returns an answer without style, space, signs of an end, and dollars.

  What is left is LaTeX; equal texts are equal answers, but not the reverse.
  """
  text = _signs(text)
  for _ in range(4):
    before = text
    text = _THIN.sub("", text)
    text = _FONT.sub(lambda x: x[1] or x[2] or x["token"] or "", text)
    text = _SILENT.sub(" ", text)
    text = _LEAD_WORDS.sub("", text, count=1) if _leads(text) else text
    text = _STYLE.sub("", text).strip()
    whole = _TEXT.fullmatch(text)
    # A number or a list, and no word.
    if whole and _VALUES.search(whole[1]):
      text = whole[1].strip()
    for pattern in _WRAPPED:
      if whole := pattern.fullmatch(text):
        text = whole[1].strip()
    if whole := _ENVIRONMENT.fullmatch(text):
      text = whole[2].replace("&", "").strip()
    text = _END.sub(
      "", _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
    )
    if text == before:
      break
  text = _typed(_ROW_END.sub(r"\1 ", text))
  text = _FRAC.sub(r"\\frac", text)
  text = _SHORT_FRAC.sub(r"\\frac{\1}{\2}", text)
  text = _COMMA.sub(",", text)
  text = _SPACE.sub(" ", text)
  text = _DEGREE.sub("°", text)
  text = _SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
  condition = _SET_BUILDER.fullmatch(text)
  return (condition[1] if condition else text).strip()


def _leads(text: str) -> bool:
  """Returns True if words that say nothing stand before something else."""
  found = _LEAD_WORDS.match(text)
  return found is not None and found.end() < len(text)


def _typed(text: str) -> str:
  """Returns what people type without LaTeX, such as `2pi`, as LaTeX."""
  text = _NAMED_SIGN.sub(lambda found: _NAMED_SIGNS[found[1]], text)
  text = _PI.sub(r"\\pi ", text)
  text = _TYPED_ROOT.sub(r"\\sqrt", text)
  text = _TYPED_POWER.sub(
    lambda found: f"^{{{found[1]}}}" if found[1] else "^", text
  )
  return _CHOOSE.sub(r"\\binom{\1}{\2}", text)


def without_text_commands(text: str) -> str:
  """Returns the text with `\\text{cm}` and the like as `cm`."""
  for _ in range(3):
    text = _TEXT.sub(r" \1 ", text)
  return " ".join(text.split())


def is_text(text: str) -> bool:
  """Returns True if all of it stands in commands such as `\\text{…}`."""
  return bool(_TEXT.search(text)) and not _TEXT.sub("", text).strip(" ()")


def _signs(text: str) -> str:
  if text.isascii():
    return text
  text = _ROOT.sub(lambda found: f"\\sqrt{{{found[1] or found[2]}}}", text)
  text = re.sub(
    "[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda x: f"^{{{x[0].translate(_HIGH)}}}", text
  )
  text = re.sub("[₀-₉]+", lambda x: f"_{{{x[0].translate(_LOW)}}}", text)
  text = _SIGN.sub(lambda found: _SIGNS[found[0]], text)
  return "".join(map(_folded, text))


def _folded(sign: str) -> str:
  """Returns a fraction such as ½, or a wide digit, in plain signs."""
  kind, _, parts = unicodedata.decomposition(sign).partition(" ")
  if kind == "<fraction>":
    above, below = "".join(chr(int(part, 16)) for part in parts.split()).split(
      "⁄"
    )
    return f"\\frac{{{above}}}{{{below}}}" if below else sign
  return unicodedata.normalize("NFKC", sign) if kind == "<wide>" else sign
