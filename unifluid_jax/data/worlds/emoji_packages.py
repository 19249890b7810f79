"""Where the emoji world's drawings come from: packages of npm, read as data.

Sets of SVG drawings in the form of iconify (`icons.json`: name → body), joined
with Unicode's names and groups. Nothing of a package is run, and nothing is
unpacked: files are read out of a folder or an archive by name. Versions are
pinned, contents by their digest, so that all runs have the same pictures.
"""

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unifluid_jax.core import files
from unifluid_jax.data.worlds.emoji import GROUPS, TONES, Picture

_LIMIT = 64 << 20  # bytes of a file; the largest has 25 MB
_TIMEOUT = 300  # seconds for one package
_WANTED = ("icons.json", "chars.json", "info.json", "data-by-emoji.json")
_PRESENTATION = 0xFE0F  # asks for the coloured form; names differ in it
# Of another meaning than the Unicode name that they are equal to.
_WRONG_ALIASES = (("emojione", "cricket"),)  # the game, not the insect


class Package(NamedTuple):
  """A package at its version; `digest`: SHA-256 of its `main` file."""

  name: str
  version: str
  main: str
  digest: str
  licence: str  # SPDX
  copyright: str
  source: str  # where the authors publish it

  @property
  def stem(self) -> str:
    """Of the archive that `npm pack` writes."""
    return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}"


def _iconify(name: str, *rest: str) -> Package:
  version, digest, licence, copyright_, source = rest
  return Package(
    f"@iconify-json/{name}", version, "icons.json", digest, licence,
    copyright_, source,
  )  # fmt: skip


# Style → its drawings. A style that is share-alike is drawn when asked only.
SETS: Mapping[str, Package] = {
  "twemoji": _iconify(
    "twemoji", "1.2.5",
    "5d5d820790565b764f2728675d487c9ee4c1fc83916d8567d5aca8ba7527c242",
    "CC-BY-4.0", "Twitter, Inc and other contributors",
    "github.com/jdecked/twemoji",
  ),
  "noto": _iconify(
    "noto", "1.2.9",
    "9eac6ef4e7ec122b6f0e7ac281d61008afdbc720d0ce861e398b939daaa347c6",
    "Apache-2.0", "Google Inc", "github.com/googlefonts/noto-emoji",
  ),
  "fluent": _iconify(
    "fluent-emoji-flat", "1.2.6",
    "f5f4cf457c0db2ad5a2e42e033e02e0c87d10e43d0164cfffb3bb84914970a63",
    "MIT", "Microsoft Corporation", "github.com/microsoft/fluentui-emoji",
  ),
  "emojione": _iconify(
    "emojione", "1.2.3",
    "e9a865faed523a7c3535b5319ae533d09fac1a62b4e96920eb178bb60e707e80",
    "CC-BY-4.0", "Emoji One", "github.com/EmojiTwo/emojitwo",
  ),
  "openmoji": _iconify(
    "openmoji", "1.2.29",
    "7075331faab544067dbff4236471dd378bb5410aa05799a8a343c9ebf5c5984c",
    "CC-BY-SA-4.0", "OpenMoji", "github.com/hfg-gmuend/openmoji",
  ),
}  # fmt: skip
NAMES = Package(
  "unicode-emoji-json", "0.9.0", "data-by-emoji.json",
  "2ebd44d5c66459b48aadbb34ad21161850da6c9b74036dce9097b2bfad9b2c23",
  "MIT", "Mu-An Chiou", "github.com/muan/unicode-emoji-json",
)  # fmt: skip
SHARE_ALIKE = tuple(s for s, p in SETS.items() if p.licence == "CC-BY-SA-4.0")

Files = Mapping[str, bytes]  # name in the package → content


def read(packages: Sequence[Package], folder: str) -> list[Files]:
  """The files of packages, in their order.

  Args:
    packages: of `SETS`, or `NAMES`.
    folder: holds them, unpacked or as archives; empty: npm downloads them.

  Raises:
    ValueError: a package is not there, of another version, or damaged; or
      neither a folder nor npm.
  """
  if folder:
    root = Path(files.local(folder, "packages", "data.world.packages"))
    return [_checked(p, _in_folder(root, p)) for p in packages]
  npm = shutil.which("npm")
  if npm is None:
    names = ", ".join(f"{p.name}@{p.version}" for p in packages)
    raise ValueError(
      "the emoji world needs npm, or data.world.packages=DIR, a folder with "
      f"these packages as `npm pack` writes them: {names}"
    )
  return [_checked(p, _downloaded(npm, p)) for p in packages]


def _in_folder(root: Path, package: Package) -> Files:
  """Of a folder of node_modules, of archives, or of unpacked archives."""
  name = package.name
  for place in (name, f"node_modules/{name}", f"{package.stem}/package",
                package.stem, name.rpartition("/")[2]):  # fmt: skip
    if (root / place / package.main).is_file():
      return _of_folder(root / place)
  archive = root / f"{package.stem}.tgz"
  if archive.is_file():
    return _of_archive(archive)
  raise ValueError(
    f"data.world.packages={str(root)!r} has no {name} {package.version}: run "
    f"`npm pack {name}@{package.version}` there"
  )


def _of_folder(folder: Path) -> Files:
  return {
    file.name: file.read_bytes()
    for file in sorted(folder.iterdir())
    if _is_wanted(file.name) and file.is_file()
  }


def _of_archive(path: Path) -> Files:
  """Files of a package's first level; no path of the archive is followed."""
  found = {}
  try:
    with tarfile.open(path) as archive:
      for member in archive:
        top, _, name = member.name.partition("/")
        if not (top and _is_wanted(name) and member.isreg()):
          continue
        if member.size > _LIMIT:
          raise ValueError(f"{name} has {member.size} bytes")
        found[name] = archive.extractfile(member).read()
  except (OSError, EOFError, tarfile.TarError, ValueError) as error:
    raise ValueError(
      f"{path} is no archive of a package ({error}): download it again"
    ) from error
  return found


def _is_wanted(name: str) -> bool:
  text = name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
  return "/" not in name and (name in _WANTED or text)


def _downloaded(npm: str, package: Package) -> Files:
  """Of an archive that npm writes into a folder that is then removed."""
  wanted = f"{package.name}@{package.version}"
  with tempfile.TemporaryDirectory() as folder:
    command = [npm, "pack", "--silent", "--ignore-scripts", wanted]
    try:
      done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False,
        timeout=_TIMEOUT,
      )  # fmt: skip
      said = " ".join((done.stderr or done.stdout).split())[-200:]
    except subprocess.TimeoutExpired:
      said = f"no answer in {_TIMEOUT} s"
    archive = Path(folder) / f"{package.stem}.tgz"
    if not archive.is_file():
      raise ValueError(
        f"`npm pack {wanted}` brought nothing ({said}): try again, or give a "
        "folder with it as data.world.packages"
      )
    return _of_archive(archive)


def _checked(package: Package, found: Files) -> Files:
  """The files, whose main one is the pinned one."""
  have = files.digest(found.get(package.main, b""))
  if have != package.digest:
    raise ValueError(
      f"{package.name}: {package.main} is not that of version "
      f"{package.version} (SHA-256 {have[:12]}, not {package.digest[:12]}): "
      "give exactly this version"
    )
  return found


# -------------------------------------------------------------- Names, drawings


class Name(NamedTuple):
  """One entry of Unicode's list."""

  emoji: str
  concept: str
  slug: str  # with hyphens, as sets name their drawings
  group: str
  toned: bool


def names(found: Files) -> list[Name]:
  """Unicode's names of a `NAMES` package, as people type them.

  In lower case, with a plain apostrophe.
  """
  listed = json.loads(found[NAMES.main])
  return [
    Name(
      emoji, entry["name"].lower().replace("’", "'"),
      entry["slug"].replace("_", "-"), entry["group"].lower(),
      entry["skin_tone_support"],
    )
    for emoji, entry in listed.items()
  ]  # fmt: skip


def drawings(
  style: str,
  found: Files,
  listed: Sequence[Name],
  groups: Sequence[str] = GROUPS,
  tones: bool = False,
) -> Iterator[tuple[Picture, str]]:
  """Pictures of a set that have a Unicode name, each with its SVG.

  Sets name drawings each in their own way: the code points decide where a set
  lists them (`chars.json`), else names and their aliases.

  Args:
    style: of `SETS`.
    found: files of its package.
    listed: see `names`.
    groups: that are wanted.
    tones: whether with skin tones too.
  """
  icons = json.loads(found["icons.json"])
  chars = json.loads(found.get("chars.json", b"{}"))
  for name in listed:
    drawn = _drawn_as(style, name, icons, chars)
    if drawn is None or name.group not in groups:
      continue
    picture = Picture(name.concept, style, name.group)
    yield picture, svg(icons, drawn)
    for tone in TONES if tones and name.toned else ():
      for variant in (f"{drawn}-{tone}-skin-tone", f"{drawn}-{tone}"):
        if variant in icons["icons"]:
          yield picture._replace(tone=tone), svg(icons, variant)
          break


def _drawn_as(
  style: str, name: Name, icons: Mapping[str, Any], chars: Mapping[str, str]
) -> str | None:
  """A set's own name of a drawing."""
  points = [ord(c) for c in name.emoji]
  plain = [p for p in points if p != _PRESENTATION]
  for code in (points, plain):
    drawn = chars.get("-".join(f"{p:x}" for p in code), "")
    if drawn in icons["icons"]:
      return drawn
  if name.slug in icons["icons"]:
    return name.slug
  alias = icons.get("aliases", {}).get(name.slug, {})
  # An alias with more than a parent is its drawing turned or mirrored.
  if set(alias) == {"parent"} and (style, name.slug) not in _WRONG_ALIASES:
    return alias["parent"] if alias["parent"] in icons["icons"] else None
  return None


def svg(icons: Mapping[str, Any], name: str) -> str:
  """A drawing as an SVG document, in the middle of a square."""
  icon = icons["icons"][name]

  def number(key: str, default: float) -> float:
    return float(icon.get(key, icons.get(key, default)))

  width, height = number("width", 16.0), number("height", 16.0)
  side = max(width, height)
  left = number("left", 0.0) - (side - width) / 2
  top = number("top", 0.0) - (side - height) / 2
  return (
    '<svg xmlns="http://www.w3.org/2000/svg" '
    'xmlns:xlink="http://www.w3.org/1999/xlink" '
    f'viewBox="{left:g} {top:g} {side:g} {side:g}">{icon["body"]}</svg>'
  )


# ------------------------------------------------------------------ Attribution


def attribution(packages: Sequence[Package]) -> str:
  """Who made the pictures and under which terms, as Markdown."""
  rows = [
    f"| {p.copyright} | https://{p.source} | {p.licence} | "
    f"{p.name} {p.version} |"
    for p in packages
  ]
  return "\n".join([
    "# Attribution",
    "",
    "These pictures were drawn from the SVG files of the sets below at a "
    "smaller size, over plain grounds; nothing else was changed.",
    "",
    "| authors | source | licence | package |",
    "|---|---|---|---|",
    *rows,
    "",
    "CC-BY-4.0: https://creativecommons.org/licenses/by/4.0/legalcode. "
    "CC-BY-SA-4.0: https://creativecommons.org/licenses/by-sa/4.0/legalcode. "
    "Texts of the others lie in LICENCES, or beside this file.",
    "",
  ])  # fmt: skip


def licences(
  packages: Sequence[Package], found: Sequence[Files]
) -> dict[str, bytes]:
  """File name → text of a licence: the package's own, or the general one."""
  texts = {}
  for package, content in zip(packages, found, strict=True):
    own = {n: t for n, t in content.items() if n not in _WANTED}
    stem = package.name.rpartition("/")[2]
    texts |= {f"{stem}.{n}": text for n, text in own.items()}
    general = Path(__file__).parent / "licences" / f"{package.licence}.txt"
    if not own and general.is_file():
      holder = package.copyright.encode()
      text = general.read_bytes().replace(b"<copyright holders>", holder)
      texts[f"{stem}.{package.licence}.txt"] = text
  return texts
