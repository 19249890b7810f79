"""Gives the notebooks the repository's address, and a line that opens them.

  python colabs/badges.py

asks git for the address of `origin`. A checkout of your own then opens in Colab
from its page on GitHub, and clones itself. Run again, it changes nothing.
"""

import json
import re
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent
_ADDRESS = re.compile(r"(?:https://|git@)github\.com[/:]([^/\s]+/[^/\s]+?)(\.git)?$")
_COLAB = "https://colab.research.google.com"
_BADGE = "[![Open in Colab]"


def main() -> None:
  """Rewrites the notebooks beside this file.

  Raises:
    SystemExit: there is no origin, or it is not on GitHub.
  """
  git = ["git", "-C", str(FOLDER), "remote", "get-url", "origin"]
  asked = subprocess.run(git, capture_output=True, text=True, check=False)
  found = _ADDRESS.match(asked.stdout.strip())
  if not found:
    raise SystemExit(
      f"error: origin is {asked.stdout.strip() or 'not set'}: Colab opens "
      "notebooks of repositories on github.com; git remote add origin ADDRESS"
    )
  for path in sorted(FOLDER.glob("*.ipynb")):
    written = with_address(path.read_text(), found[1], path.name)
    path.write_text(written)
    print(f"wrote {path.relative_to(FOLDER.parent)}")


def with_address(text: str, repository: str, name: str) -> str:
  """A notebook with its badge and the address that it clones.

  Args:
    text: of the .ipynb file.
    repository: "owner/name".
    name: of the file.
  """
  notebook = json.loads(text)
  page = f"{_COLAB}/github/{repository}/blob/main/colabs/{name}"
  badge = f"{_BADGE}({_COLAB}/assets/colab-badge.svg)]({page})\n"
  first, *_ = notebook["cells"]
  lines = first["source"]
  if lines[0].startswith(_BADGE):
    lines = lines[2:]
  first["source"] = [badge, "\n", *lines]
  for cell in notebook["cells"]:
    if "parameters" in cell["metadata"].get("tags", []):
      address = f'REPOSITORY = "https://github.com/{repository}.git"'
      cell["source"] = [
        re.sub('^REPOSITORY = ".*?"', address, line)
        for line in cell["source"]
      ]  # fmt: skip
  return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
  main()
