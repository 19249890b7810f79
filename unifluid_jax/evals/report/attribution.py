"""Who made a data set's pictures: the file beside the data, on the page."""

import re
from html import escape

from etils import epath

from unifluid_jax.core import files

NAMES = ("ATTRIBUTION.md", "ATTRIBUTION", "ATTRIBUTION.txt")
# [text](address) or a bare address, in text that is escaped already.
_LINK = re.compile(
  r"\[(?P<text>[^\]]+)\]\((?P<to>https?://[^\s)]+)\)"
  r"|(?P<bare>https?://[^\s<>()]*[^\s<>().,;:])"
)


def read(root: str) -> str:
  """The text of the attribution file in `root`; empty without one."""
  for name in NAMES if root else ():
    path = epath.Path(files.path(root)) / name
    if path.exists():
      return path.read_text()
  return ""


def as_html(text: str) -> str:
  """Headings, paragraphs, lists and links of a small Markdown file.

  Everything else of Markdown stands there as it was typed.
  """
  parts: list[str] = []
  items: list[str] = []
  lines: list[str] = []

  def close():
    if items:
      parts.append("<ul>" + "".join(f"<li>{x}</li>" for x in items) + "</ul>")
    if lines:
      parts.append(f"<p>{' '.join(lines)}</p>")
    items.clear()
    lines.clear()

  for line in [*text.splitlines(), ""]:
    line = line.strip()
    if line.startswith("#"):
      close()
      parts.append(f"<h3>{_linked(line.lstrip('# '))}</h3>")
    elif line.startswith(("- ", "* ")):
      if lines:
        close()
      items.append(_linked(line[2:].strip()))
    elif not line:
      close()
    elif items:
      items[-1] += f" {_linked(line)}"  # a list item goes on
    else:
      lines.append(_linked(line))
  return "".join(parts)


def _linked(text: str) -> str:
  def link(found: re.Match) -> str:
    to = found["to"] or found["bare"]
    return f'<a href="{to}" rel="noreferrer">{found["text"] or to}</a>'

  return _LINK.sub(link, escape(text))
