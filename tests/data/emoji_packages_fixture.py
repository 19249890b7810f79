"""Packages of emoji in miniature: coloured shapes, drawn for the tests."""

import io
import json
import tarfile

from unifluid_jax.core import files
from unifluid_jax.data.worlds import emoji_packages

# Emoji → name, group, whether it has skin tones.
NAMES = {
  "\U0001f34e": ("red apple", "Food & Drink", False),
  "\U0001f34f": ("green apple", "Food & Drink", False),
  "\U0001f996": ("T-Rex", "Animals & Nature", False),
  "\U0001f426\u200d\u2b1b": ("black bird", "Animals & Nature", False),
  "\u2764\ufe0f": ("red heart", "Smileys & Emotion", False),
  "\u270b": ("raised hand", "People & Body", True),
  "\U0001f997": ("cricket", "Animals & Nature", False),
  "\U0001f45e": ("man’s shoe", "Objects", False),
}


def disc(colour):
  return f'<circle cx="16" cy="16" r="12" fill="{colour}"/>'


# Each set names its drawings in its own way.
ICONS = {
  "noto": {
    "red-apple": disc("#f00"), "green-apple": disc("#0f0"),
    "t-rex": disc("#080"), "black-bird": disc("#000"),
    "red-heart": disc("#e00"), "raised-hand": disc("#fc0"),
    "raised-hand-dark-skin-tone": disc("#630"),
    "raised-hand-light-skin-tone": disc("#fed"),
    "cricket": disc("#484"), "man-s-shoe": disc("#741"),
    "unnamed": disc("#123"),
  },
  "fluent": {
    "red-apple": disc("#d11"), "green-apple": disc("#1d1"),
    "t-rex": disc("#161"), "blackbird": disc("#111"), "heart": disc("#c11"),
    "raised-hand": disc("#ec1"), "raised-hand-dark": disc("#521"),
  },
  "emojione": {
    "red-apple": disc("#b22"), "cricket-game": disc("#fff"),
    "t-rex-head": disc("#262"), "left-apple": disc("#2b2"),
  },
}  # fmt: skip
CHARS = {"fluent": {"1f426-200d-2b1b": "blackbird", "2764": "heart"}}
ALIASES = {
  "emojione": {
    "cricket": {"parent": "cricket-game"},
    "t-rex": {"parent": "t-rex-head"},
    "green-apple": {"parent": "left-apple", "hFlip": True},
  }
}


def contents():
  """Package → its files."""
  listed = {
    emoji: dict(
      name=name, slug=name.lower().replace(" ", "_").replace("-", "_").replace(
        "’", "_"),
      group=group, skin_tone_support=toned,
    )
    for emoji, (name, group, toned) in NAMES.items()
  }  # fmt: skip
  found = {
    emoji_packages.NAMES: {
      "data-by-emoji.json": json.dumps(listed).encode(),
      "LICENSE": b"The licence of names.",
    }
  }
  for style, icons in ICONS.items():
    whole = dict(
      prefix=style, width=32, height=32,
      icons={name: {"body": body} for name, body in icons.items()},
      aliases=ALIASES.get(style, {}),
    )  # fmt: skip
    found[emoji_packages.SETS[style]] = {
      "icons.json": json.dumps(whole).encode(),
      "chars.json": json.dumps(CHARS.get(style, {})).encode(),
      "index.js": b"throw 'nothing of a package is run'",
    }
  return found


def pinned(monkeypatch):
  """Makes these the contents that the package asks for.

  Returns:
    Package → its files.
  """
  made, sets = {}, {}
  styles = {p.name: style for style, p in emoji_packages.SETS.items()}
  for package, content in contents().items():
    digest = files.digest(content[package.main])
    same = package._replace(digest=digest)
    made[same] = content
    if package.name in styles:
      sets[styles[package.name]] = same
    else:
      monkeypatch.setattr(emoji_packages, "NAMES", same)
  monkeypatch.setattr(emoji_packages, "SETS", sets)
  return made


def archive(path, content, top="package"):
  """An archive as `npm pack` writes it."""
  with tarfile.open(path, "w:gz") as made:
    for name, data in content.items():
      member = tarfile.TarInfo(f"{top}/{name}")
      member.size = len(data)
      made.addfile(member, io.BytesIO(data))


def archives(folder, made):
  """All packages as archives in a folder."""
  folder.mkdir(exist_ok=True)
  for package, content in made.items():
    archive(folder / f"{package.stem}.tgz", content)
  return str(folder)
