"""The emoji world's packages and data set, from packages made here."""

import dataclasses
import json
import shutil
import tarfile

import numpy as np
import pytest

from configs import emoji as emoji_config
from tests.data import emoji_packages_fixture as fixture
from unifluid_jax import systems
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data.images import decode_image
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.worlds import (
  emoji,
  emoji_builder,
  emoji_packages,
  written,
)
from unifluid_jax.data.worlds.emoji import Picture

WORLD = emoji_builder.World(
  sets=("noto", "fluent", "emojione"), tones=True, size=16, views=2,
  grounds=0.5, validation=4,
)  # fmt: skip


@pytest.fixture
def made(monkeypatch):
  return fixture.pinned(monkeypatch)


def drawings(style, **options):
  found = {p.name: content for p, content in fixture.contents().items()}
  names = emoji_packages.names(found[emoji_packages.NAMES.name])
  content = found[emoji_packages.SETS[style].name]
  return dict(emoji_packages.drawings(style, content, names, **options))


# ------------------------------------------------------------------- Packages


def test_sets_are_joined_by_code_points_names_and_aliases():
  def concepts(style):
    return {p.concept for p in drawings(style)}

  assert concepts("noto") == {
    "red apple", "green apple", "t-rex", "black bird", "red heart",
    "raised hand", "cricket", "man's shoe",
  }  # fmt: skip
  # By code points: with a joiner, and without the variation selector.
  assert concepts("fluent") == concepts("noto") - {"cricket", "man's shoe"}
  # Neither an alias of another meaning nor one that mirrors its drawing.
  assert concepts("emojione") == {"red apple", "t-rex"}
  (bird,) = [s for p, s in drawings("fluent").items() if "bird" in p.concept]
  assert fixture.ICONS["fluent"]["blackbird"] in bird


def test_skin_tones_and_groups_are_chosen():
  toned = {
    style: {p.tone for p in drawings(style, tones=True) if p.tone}
    for style in fixture.ICONS
  }
  assert toned == {
    "noto": {"light", "dark"}, "fluent": {"dark"}, "emojione": set()
  }  # fmt: skip
  food = drawings("noto", groups=("food & drink",))
  assert {p.group for p in food} == {"food & drink"} and len(food) == 2


def test_a_drawing_stands_in_the_middle_of_a_square():
  icons = {
    "width": 36,
    "height": 36,
    "icons": {"a": {"body": "x", "height": 25}},
  }
  assert 'viewBox="0 -5.5 36 36"' in emoji_packages.svg(icons, "a")
  icons = {"icons": {"a": {"body": "x", "left": 2, "width": 10}}}
  assert 'viewBox="-1 0 16 16"' in emoji_packages.svg(icons, "a")


@pytest.mark.parametrize(
  "layout", ["archive", "package", "node_modules", "plain"]
)
def test_packages_are_found_in_a_folder(tmp_path, made, layout):
  packages = list(made)
  if layout == "archive":
    fixture.archives(tmp_path, made)
  for package, content in made.items() if layout != "archive" else ():
    place = {
      "package": f"{package.stem}/package",
      "node_modules": f"node_modules/{package.name}",
      "plain": package.name.rpartition("/")[2],
    }[layout]
    (tmp_path / place).mkdir(parents=True)
    for name, data in content.items():
      (tmp_path / place / name).write_bytes(data)
  found = emoji_packages.read(packages, str(tmp_path))
  for content, package in zip(found, packages, strict=True):
    wanted = {k: v for k, v in made[package].items() if k != "index.js"}
    assert content == wanted


def test_what_is_missing_or_changed_is_named(tmp_path, made, monkeypatch):
  package, content = list(made.items())[1]
  with pytest.raises(ValueError, match=f"npm pack {package.name}@"):
    emoji_packages.read([package], str(tmp_path))
  changed = content | {"icons.json": b"{}"}
  fixture.archive(tmp_path / f"{package.stem}.tgz", changed)
  with pytest.raises(ValueError, match="give exactly this version"):
    emoji_packages.read([package], str(tmp_path))
  (tmp_path / f"{package.stem}.tgz").write_bytes(b"no archive")
  with pytest.raises(ValueError, match="download it again"):
    emoji_packages.read([package], str(tmp_path))
  monkeypatch.setattr(shutil, "which", lambda name: None)
  with pytest.raises(ValueError, match="needs npm, or data.world.packages"):
    emoji_packages.read([package], "")


def test_an_archive_is_read_by_name_alone(tmp_path, made):
  """Links, folders and paths that lead elsewhere are passed over."""
  package, content = list(made.items())[1]
  path = tmp_path / f"{package.stem}.tgz"
  with tarfile.open(path, "w:gz") as archive:
    for name, kind in (
      ("package/info.json", tarfile.SYMTYPE),
      ("package/LICENSE", tarfile.DIRTYPE),
    ):
      member = tarfile.TarInfo(name)
      member.type, member.linkname = kind, "/etc/passwd"
      archive.addfile(member)
  assert emoji_packages._of_archive(path) == {}
  fixture.archive(path, {"../icons.json": b"x", "sub/icons.json": b"y"})
  assert emoji_packages._of_archive(path) == {}


def test_npm_downloads_what_no_folder_has(tmp_path, made, monkeypatch):
  """A stand-in for npm, which writes the archive where it is started."""
  store = fixture.archives(tmp_path / "store", made)
  npm = tmp_path / "npm"
  npm.write_text(
    "#!/bin/sh\n"
    'for last in "$@"; do :; done\n'
    "stem=$(echo $last | tr -d @ | tr / - )\n"
    f"ls {store}/*.tgz | while read f; do\n"
    '  [ "$(basename $f .tgz | tr -d -)" = "$(echo $stem | tr -d -)" ] &&\n'
    "  cp $f .; done; true\n"
  )
  npm.chmod(0o755)
  monkeypatch.setattr(shutil, "which", lambda name: str(npm))
  package, content = list(made.items())[1]
  (found,) = emoji_packages.read([package], "")
  assert found["icons.json"] == content["icons.json"]
  npm.write_text("#!/bin/sh\necho no network >&2; exit 1\n")
  with pytest.raises(ValueError, match="brought nothing.*no network"):
    emoji_packages.read([package], "")


# -------------------------------------------------------------------- Data set


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  root = tmp_path_factory.mktemp("emoji")
  with pytest.MonkeyPatch.context() as patch:
    made = fixture.pinned(patch)
    packages = fixture.archives(root / "packages", made)
    emoji_builder.build(root / "emoji", WORLD, packages)
  return root


def records(root, split):
  config = SourceConfig("array_record", "emoji", split)
  source = sources.open_source(config, str(root), "caption en")
  return [source[i] for i in range(len(source))]


def colour(data, x=8, y=8):
  return tuple(int(c) for c in decode_image(data)[y, x])


def test_a_record_shows_what_it_says(built):
  """Its middle has the drawing's colour, its corner the ground's."""
  fills = {}
  for style, icons in fixture.ICONS.items():
    for name, body in icons.items():
      fills[style, name] = tuple(
        17 * int(c, 16) for c in body.partition("#")[2][:3]
      )
  seen = 0
  for split in ("train", "validation", "held_out"):
    for record in records(built, split):
      picture = emoji.picture_from_json(record.scene)
      if picture.concept not in ("red apple", "green apple", "raised hand"):
        continue
      name = picture.concept.replace(" ", "-")
      if picture.tone:
        name += f"-{picture.tone}"
        name += "-skin-tone" if picture.style == "noto" else ""
      assert colour(record.image) == fills[picture.style, name]
      ground = record.prompts[0].partition(" style on ")[2]
      want = emoji_builder.GROUNDS[ground] if ground else emoji_builder.WHITE
      assert colour(record.image, 0, 0) == want
      assert not ground or split == "train"
      assert record.captions == (emoji.caption(picture),)
      assert len(record.kinds) == len(record.questions)
      seen += 1
  assert seen > 10


def test_edits_lead_to_true_pictures_and_never_to_held_out_ones(built):
  train = records(built, "train")
  known = {r.scene: r for r in train}
  unseen = {r.scene for r in records(built, "held_out")}
  assert unseen and not unseen & set(known)
  edited = [r for r in train if r.edit]
  assert {r.edit[0].split()[-1] for r in edited} & set(emoji.TONES)
  for record in edited:
    source, target = map(
      emoji.picture_from_json, (record.scene, record.edit_scene)
    )
    assert source.concept == target.concept and source != target
    assert record.edit_scene in known
    instruction, image = record.edit
    changed = target.tone if target.style == source.style else target.style
    assert changed in instruction
    assert colour(image, 0, 0) == colour(record.image, 0, 0)
  # What has no other picture has no edit.
  assert [r for r in train if not r.edit and not r.edit_scene]


def test_every_picture_has_its_views_on_both_grounds(built):
  train = records(built, "train")
  grounds = {}
  for record in train:
    white = colour(record.image, 0, 0) == emoji_builder.WHITE
    grounds.setdefault(record.scene, []).append(white)
  assert all(sorted(of) == [False, True] for of in grounds.values())
  assert len({r.id for r in train}) == len(train) == 2 * len(grounds)


@pytest.mark.parametrize("grounds, coloured", [(0.0, 0), (0.25, 1), (1.0, 4)])
def test_the_share_of_other_grounds(grounds, coloured):
  """Of four views, whatever picture it is."""
  world = dataclasses.replace(WORLD, views=4, grounds=grounds)
  for i in range(20):
    picture = Picture(f"thing {i}", "noto", "objects")
    names = [
      emoji_builder._ground(world, picture, view, np.random.default_rng(i))[0]
      for view in range(4)
    ]
    assert 4 - names.count("") == coloured


def test_terms_and_authors_lie_beside_the_data(built):
  folder = built / "emoji"
  text = (folder / emoji_builder.ATTRIBUTION).read_text()
  for style in WORLD.sets:
    package = emoji_packages.SETS[style]
    assert package.copyright in text and package.licence in text
    assert f"{package.name} {package.version}" in text
  assert emoji_packages.SETS["openmoji"].name not in text
  terms = {p.name: p.read_text() for p in (folder / "LICENCES").iterdir()}
  assert terms["unicode-emoji-json.LICENSE"] == "The licence of names."
  assert "(c) Microsoft Corporation" in terms["fluent-emoji-flat.MIT.txt"]
  assert "Apache License" in terms["noto.Apache-2.0.txt"]


def test_a_finished_data_set_needs_no_packages(built):
  emoji_builder.build(built / "emoji", WORLD, "nowhere")
  other = dataclasses.replace(WORLD, size=32)
  with pytest.raises(ValueError, match="another size"):
    emoji_builder.build(built / "emoji", other, "nowhere")


def test_the_same_packages_give_the_same_bytes_and_no_half(
  built, tmp_path, monkeypatch
):
  fixture.pinned(monkeypatch)
  packages = str(built / "packages")
  emoji_builder.build(tmp_path / "emoji", WORLD, packages)
  for path in (built / "emoji").glob("*.array_record*"):
    assert path.read_bytes() == (tmp_path / "emoji" / path.name).read_bytes()

  def stop(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(emoji_packages, "licences", stop)
  with pytest.raises(KeyboardInterrupt):
    emoji_builder.build(tmp_path / "again", WORLD, packages)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["emoji"]


def test_share_alike_sets_are_drawn_when_asked_only():
  assert emoji_packages.SHARE_ALIKE == ("openmoji",)
  assert set(emoji_builder.SETS) == set(emoji.STYLES) - {"openmoji"}
  for size in ("small", "full"):
    world = emoji_config.get_config(size).data.world
    assert set(world.sets) == set(emoji_builder.SETS)


def test_the_configuration_says_which_world(tmp_path, built, monkeypatch):
  fixture.pinned(monkeypatch)

  def config(**world):
    c = emoji_config.get_config()
    c.data.root = str(tmp_path)
    c.data.world.update(packages=str(built / "packages"), **world)
    return systems.resolve(c)

  small = config(sets=("noto",), groups=("food & drink",), size=16)
  said = written.write_world(small)
  assert said.startswith("wrote the data set: 8 train, 2 validation records")
  assert written.write_world(small).startswith("kept")
  assert len(records(tmp_path, "train")) == 4 * 2
  # One set leaves nothing to hold out.
  with pytest.raises(ValueError, match="split 'held_out'"):
    records(tmp_path, "held_out")
  with pytest.raises(ValueError, match="data.world.kind='emojis': shapes or"):
    written.write_world(config(kind="emojis"))
  with pytest.raises(ValueError, match=r"data.world has no colour; known: pac"):
    written.write_world(config(colour="red"))
  with pytest.raises(ValueError, match="data.world.sets=.*some of noto, fl"):
    emoji_builder.World(sets=("apple",))
  with pytest.raises(ValueError, match="data.world.grounds=2"):
    dataclasses.replace(WORLD, grounds=2.0)


def test_transparency_is_laid_over_a_ground():
  drawing = np.uint8([
    [[255, 0, 0, 255], [255, 0, 0, 51]], [[9, 9, 9, 0], [9, 9, 9, 255]]
  ])  # fmt: skip
  over = emoji_builder.laid_over(drawing, (0, 100, 200))
  assert over.tolist() == [
    [[255, 0, 0], [51, 80, 160]], [[0, 100, 200], [9, 9, 9]]
  ]  # fmt: skip


def test_pinned_versions_are_named_in_messages():
  package = emoji_packages.SETS["fluent"]
  assert package.stem == "iconify-json-fluent-emoji-flat-1.2.6"
  assert emoji_packages.NAMES.stem == "unicode-emoji-json-0.9.0"
  assert json.dumps(Picture("a", "noto", "objects")) == (
    '["a", "noto", "objects", null]'
  )
