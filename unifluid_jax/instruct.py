r"""Makes dialogues that ask for images out of any set of captioned images.

  python -m unifluid_jax.instruct --from=coco:annotations.json:images \
      --root=DATA --to=DATA/dialogues
  python -m unifluid_jax.instruct --from=jsonl:captions.jsonl --root=DATA \
      --to=DATA/asked --form=requests
  python -m unifluid_jax.instruct --to=DATA/asked --form=replies \
      --replies=replies.jsonl

--form=templates joins captions with up to 400 wordings of requests and of
answers. --form=requests writes requests.jsonl, one a line: `messages` with four
examples for whatever language model you like, and an `id`. Write its replies
as {"id": ..., "reply": text} lines; --form=replies checks them, and writes what
was rejected, with reasons, and again.jsonl, the requests to send once more.

Both write train.json and held_out.json, read by data.train.NAME.format=sharegpt
with task "dialogue". A share of the wordings, and the images asked for in them,
are in held_out.json alone. --seed decides all choices. --pools=FILE, a JSON
object with lists named prompts, captions and answers, replaces the wordings.
"""

import pathlib

from absl import flags

from unifluid_jax.core import cli, files
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data.instructions import builder, few_shot, templates
from unifluid_jax.data.sources import source as sources

_FROM = flags.DEFINE_string(
  "from", None, "FORMAT:PATH of captioned images, as data.train.* has them."
)
_ROOT = flags.DEFINE_string("root", ".", "Folder that PATH is relative to.")
_SPLIT = flags.DEFINE_string("split", "train", "Of the captioned images.")
_TO = flags.DEFINE_string("to", None, "Folder to write.")
_FORM = flags.DEFINE_enum(
  "form", "templates", ["templates", "requests", "replies"], "What to make."
)
_POOLS = flags.DEFINE_string("pools", None, "JSON file of wordings.")
_COUNT = flags.DEFINE_integer(
  "templates", templates.MOST, "Wordings of requests, and of answers, at most."
)
_HELD_OUT = flags.DEFINE_float(
  "held_out", 0.05, "Share of the wordings of requests kept for evaluation."
)
_LIMIT = flags.DEFINE_integer("limit", 0, "First records only; 0: all.")
_SEED = flags.DEFINE_integer("seed", 0, "Of all choices.")
_REPLIES = flags.DEFINE_string("replies", None, "JSON lines of id and reply.")
_OVERLAP = flags.DEFINE_float(
  "overlap", few_shot.OVERLAP, "Share of a caption's words that prompts need."
)


def main(_: list[str]) -> None:
  """Checks the flags, then makes what they ask for."""
  say = cli.speaker()
  folder = pathlib.Path(files.local(_TO.value, "dialogues", "--to"))
  if _FORM.value == "replies":
    if not _REPLIES.value or _FROM.value:
      raise ValueError(
        "--form=replies reads --replies=FILE and what --to holds, no --from"
      )
    say(builder.from_replies(folder, _REPLIES.value, _OVERLAP.value))
    return
  if _REPLIES.value:
    raise ValueError(f"--replies needs --form=replies, not {_FORM.value}")
  pools = templates.POOLS
  if _POOLS.value:
    pools = templates.load_pools(_POOLS.value)
  used = templates.choose(pools, _COUNT.value, _HELD_OUT.value, _SEED.value)
  source = _source()
  if _FORM.value == "templates":
    say(builder.from_templates(source, folder, used, _SEED.value))
  else:
    say(builder.write_requests(source, folder, pools, used, _SEED.value))


def _source() -> sources.Source:
  """The captioned images that --from names."""
  form, colon, path = (_FROM.value or "").partition(":")
  known = SourceConfig.__annotations__["format"].__args__
  if not colon or form not in known:
    raise ValueError(
      f"--from={_FROM.value!r}: write FORMAT:PATH, FORMAT one of "
      f"{', '.join(known)}"
    )
  if _LIMIT.value < 0 or _SEED.value < 0:
    raise ValueError("--limit and --seed are no negative numbers")
  config = SourceConfig(form, path, _SPLIT.value, limit=_LIMIT.value)
  return sources.open_source(config, _ROOT.value, "caption en", "--from")


if __name__ == "__main__":
  flags.mark_flags_as_required(["to"])
  cli.run(main, caches=False)
