"""Liquid 7B: Gemma-1 7B, Chameleon's image tokenizer, 512 x 512 images.

  python -m unifluid_jax.main --config=configs/liquid_7b.py:pretrain \
      --workdir=gs://BUCKET/liquid_7b --coordinator=auto
  python -m unifluid_jax.main --config=configs/liquid_7b.py:sft \
      --workdir=gs://BUCKET/liquid_7b_sft --coordinator=auto

`:pretrain` is Liquid §2 as in configs/liquid_2b.py, with clipping at 0.5 and
the max-z term. `:sft` is §4.3: 1M rows of LMSYS, 1M of text-to-image, 1.5M
multi-modal instructions of Mini-Gemini, in Gemma's chat template; its code was
not released, so rates and epochs are open. The table of 264,192 rows makes
8,562,846,720 parameters. Hardware: 64 v5p chips; not run by us. Paper's
results: GenAI-Bench basic 0.83, MJHQ FID 5.47, VQAv2 68.0.
"""

from configs import liquid_2b
from configs.base import source

_ROWS = 3_500_000


def get_config(arg: str = "pretrain"):
  """`arg`: "pretrain" or "sft", then what liquid_2b.vary knows."""
  phase, _, changes = (arg or "pretrain").partition(",")
  if phase not in ("pretrain", "sft"):
    raise ValueError(f"unknown config argument {phase!r}: pretrain or sft")
  c = liquid_2b.sized("gemma1_7b")
  c.name = "liquid_7b"
  if phase == "sft":
    c.name = "liquid_7b_sft"
    instruct(c)
  liquid_2b.vary(c, changes)
  return c


def instruct(c) -> None:
  """Finetuning on texts, images and questions, from the pretrained run."""
  c.init = dict(all="runs/liquid_7b", decoder="")
  # 292, 439 and 292 of 1024, by the sizes of the three sets; here such that
  # 64 devices divide them.
  c.batch = dict(t2i=320, i2t=448, text=256)
  c.steps = _ROWS // 1024  # open: one epoch
  c.optim.warmup = int(0.03 * c.steps)
  c.data.train = dict(
    pairs=source("pairs", tasks=("t2i",), moments="pairs_codes"),
    instructions=source(
      "instructions", tasks=("i2t",), moments="instructions_codes"
    ),
    chats=source("chats", tasks=("text",)),
  )
  # Gemma's ids: <start_of_turn>user\n IMAGE \nQUESTION<end_of_turn>\n
  # <start_of_turn>model\n ANSWER.
  c.text.special.update(start=106, end=107, newline=108, user=1645, model=2516)
  c.model.user = ("start", "user", "newline")
  c.model.ask = ("newline",)
  c.model.reply = ("end", "newline", "start", "model", "newline")
  # i2t 5 + 1024 + 256 + 763, text 256 + 1792.
  c.text.update(prefix=256, suffix=763)
  c.model.text_suffix = 1792
