"""Experiments of Liquid and UniToken: which runs each needs.

Liquid (arXiv 2412.04332) tables 1, 5 and 6, figures 3 to 6 and 10; UniToken
(arXiv 2504.04423) tables 5 and 6. Columns name our measure and, in brackets,
the paper's of the same kind: only trends compare. `paper_tables` and
`drawing_tables` have UniFluid's, `vargpt_tables` VARGPT's.
"""

from collections.abc import Mapping

from unifluid_jax.evals.published.drawing_tables import DRAWING_STUDIES
from unifluid_jax.evals.published.paper_tables import Arm, Study
from unifluid_jax.evals.published.vargpt_tables import VARGPT_STUDIES

_LIQUID, _UNITOKEN = "configs/liquid_shapes.py", "configs/unitoken_shapes.py"
_FID, _GENEVAL = "FID (gFID)", "GenEval (GenAI-Bench basic)"
_ADVANCED, _VQA = "advanced (GenAI-Bench advanced)", "QA (VQAv2)"
_DRAWS = ("geneval", "geneval_advanced", "fid")
_READS = ("captions", "vqa")

# Of the scaling experiment, as its files call them.
IMAGE_LOSS, IMAGE_TOP1 = "image_loss", "image_top1"
DRAWING, LANGUAGE = "geneval", "text_choice"


def _batch(**rows: int) -> tuple[str, ...]:
  """Rows per step and task."""
  return tuple(f"--config.batch.{task}={n}" for task, n in rows.items())


# -------------------------------------------------------- Liquid, table 1

# The same for every arm: an equal mixture, at a fifth of the rate.
_SFT = (
  *_batch(t2i=24, i2t=24, text=24),
  "--config.optim.lr=1.4e-3",
  "--config.optim.adam_lr=6e-4",
)


def _mixed(
  name: str, title: str, t2i: int, i2t: int, text: int, **published: float
) -> tuple[Arm, Arm]:
  """Pretraining on a mixture, and its fine-tuning, which is scored."""
  before = f"liquid1_{name}"
  rows = _batch(t2i=t2i, i2t=i2t, text=text)
  columns = {_FID: "fid", _GENEVAL: "basic", _ADVANCED: "advanced",
             _VQA: "vqa"}  # fmt: skip
  known = {c: published[key] for c, key in columns.items() if key in published}
  return (
    Arm(before, f"{title}, pretraining", flags=rows, metrics=()),
    Arm(f"{before}_sft", title, flags=_SFT, metrics=_DRAWS + _READS,
        published=known, follows=before, share=0.25),
  )  # fmt: skip


_LIQUID1 = Study(
  "More generation or more understanding data",
  _LIQUID,
  {_FID: "fid/generated", _GENEVAL: "geneval/overall",
   _ADVANCED: "geneval_advanced/overall", _VQA: "vqa/all"},
  (
    *_mixed("base", "Base mixture", 24, 24, 24, fid=19.9, basic=0.63,
            advanced=0.58, vqa=60.7),
    *_mixed("generation", "+ generation", 48, 24, 24, fid=12.8, basic=0.78,
            advanced=0.63, vqa=64.5),
    *_mixed("understanding", "+ understanding", 24, 48, 24, fid=14.9,
            basic=0.73, advanced=0.62, vqa=63.5),
    # As many rows and steps as the two before it, of the base's mixture.
    *_mixed("control", "Base mixture, as many rows as the others", 32, 32, 32),
  ),
  "Liquid table 1: Gemma-7B, 10M rows of each kind, + 10M",
)  # fmt: skip

# ------------------------------------------- Liquid, figures 3 to 6, table 5

WIDTHS = (48, 96, 192, 384)
DATA = ("text", "t2i", "mix")
_HEAD = 16
_ROWS = 48


def scaling_arm(width: int, data: str) -> Arm:
  """One size on texts alone, on text-to-image alone, or on both.

  As in the paper each kind of data is as much in the mixture as alone: the
  mixture's steps hold twice the rows.
  """
  rows = dict(t2i=_ROWS, i2t=0, text=_ROWS)
  if data != "mix":
    rows |= {"t2i" if data == "text" else "text": 0}
  shape = dict(width=width, mlp=2 * width, heads=width // _HEAD,
               kv_heads=width // _HEAD, head_dim=_HEAD)  # fmt: skip
  flags = [f"--config.model.decoder.{k}={v}" for k, v in shape.items()]
  metrics = ["validation_loss"]
  metrics += ["geneval"] if rows["t2i"] else []
  metrics += ["text_choice"] if rows["text"] else []
  return Arm(
    f"liquid_scaling_{width}_{data}",
    f"width {width}, {data}",
    flags=(*flags, *_batch(**rows), "--config.optim.schedule=constant"),
    metrics=tuple(metrics),
  )


_SCALING = Study(
  "Sizes on texts, on text-to-image and on both",
  _LIQUID,
  {
    IMAGE_LOSS: "validation_loss/t2i/loss_image",
    IMAGE_TOP1: "validation_loss/t2i/image_accuracy",
    DRAWING: "geneval/overall",
    LANGUAGE: "text_choice/accuracy",
  },
  tuple(scaling_arm(w, d) for w in WIDTHS for d in DATA),
  "Liquid figures 3 to 6 give no numbers; its table 5, mean of five language "
  "tasks, text-only → mix: Llama-3 1B -4.9, Qwen2.5 7B -1.4, Gemma 7B -.3, "
  "Qwen2.5 32B -.2",
  checkpoints=4,
  scaling=True,
)

# ------------------------------------------------- Liquid, table 6, figure 10

# The configuration's own, as the guidance study scores the same run.
_OWN_CFG = 2.0
_PLAIN = Arm(
  "liquid_plain", "Plain", metrics=_DRAWS + _READS, where={"cfg": _OWN_CFG}
)
_ALIGNED = "runs/shapes/vq_aligned"
_LIQUID6 = Study(
  "Longer training, and codes that are aligned with captions",
  _LIQUID,
  {_VQA: "vqa/all", _GENEVAL: "geneval/overall", _FID: "fid/generated"},
  (
    _PLAIN._replace(published={_VQA: 68.0, _GENEVAL: 0.83}),
    Arm("liquid_longer", "Twice as long", metrics=_DRAWS + _READS, share=2.0,
        published={_VQA: 71.3}),
    Arm("liquid_aligned", "Aligned tokenizer", metrics=_DRAWS + _READS,
        flags=(f"--config.model.vq_path={_ALIGNED}",
               "--config.data.train.shapes.moments=shapes_codes_aligned"),
        published={_VQA: 76.8},
        codec=("configs/tokenizer.py:shapes_aligned", _ALIGNED)),
  ),
  "Liquid table 6: Gemma-7B; with the aligned tokenizer, UniTok, Llama-2 7B at "
  "256 pixels",
)  # fmt: skip

# The configuration's own last: the run's report shows what was scored last.
_GUIDANCE = (1.0, 1.5, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, _OWN_CFG)
_LIQUID10 = Study(
  "Guidance of one trained run",
  _LIQUID,
  {"GenEval": "geneval/overall", "Fréchet ratio": "fid/ratio"},
  tuple(
    _PLAIN._replace(
      title=f"cfg {scale:g}",
      flags=(f"--config.sampling.cfg={scale:g}",),
      metrics=("geneval", "fid"),
      where={"cfg": scale},
    )
    for scale in _GUIDANCE
  ),
  "Liquid figure 10 gives no numbers",
)

# ------------------------------------------------------ UniToken, tables 5, 6

_GENERAL, _DRAWN = "QA (general benchmarks)", "GenEval (GenEval)"


def _twofold(
  name: str, title: str, argument: str = "", general: float = 0.0,
  drawn: float = 0.0, flags: tuple[str, ...] = (), share: float = 1.0,
) -> Arm:  # fmt: skip
  """A run that is scored on what it is trained on."""
  metrics = () if "t2i_only" in argument else ("vqa",)
  metrics += () if "i2t_only" in argument else ("geneval",)
  known = {_GENERAL: general, _DRAWN: drawn}
  return Arm(
    f"unitoken_{name}", title, argument, flags, metrics,
    published={c: v for c, v in known.items() if v}, share=share,
  )  # fmt: skip


_COLUMNS = {_GENERAL: "vqa/all", _DRAWN: "geneval/overall"}
_UNITOKEN5 = Study(
  "With and without continuous features",
  _UNITOKEN,
  _COLUMNS,
  (
    _twofold("discrete_i2t", "Codes alone, understanding",
             "discrete,i2t_only", general=45.4),
    _twofold("discrete_t2i", "Codes alone, generation", "discrete,t2i_only",
             drawn=51.2),
    _twofold("discrete", "Codes alone, both", "discrete", 45.6, 31.1),
    _twofold("base_i2t", "Codes and features, understanding",
             "base,i2t_only", general=53.2),
    _twofold("base_t2i", "Codes and features, generation", "base,t2i_only",
             drawn=51.1),
    _twofold("base", "Codes and features, both", "base", 53.3, 49.4),
  ),
  "UniToken table 5: Chameleon's architecture and UniToken with the base "
  "view, 7B, per cent",
)  # fmt: skip

_SMALL = "--config.data.train.shapes.limit=3200"
_EVEN, _HALF = _batch(t2i=24, i2t=24), _batch(t2i=12, i2t=24)
_UNITOKEN6 = Study(
  "Understanding to generation data 1:1 and 2:1, at two data sizes",
  _UNITOKEN,
  _COLUMNS,
  (
    _twofold("small_1_1", "3,200 scenes, 1:1", "base", 49.8, 51.3,
             (*_EVEN, _SMALL), 0.2),
    _twofold("small_2_1", "3,200 scenes, 2:1", "base", 50.0, 50.7,
             (*_HALF, _SMALL), 0.2),
    _twofold("large_1_1", "16,000 scenes, 1:1", "base", 53.3, 49.4, _EVEN),
    _twofold("large_2_1", "16,000 scenes, 2:1", "base", 53.0, 38.4, _HALF),
  ),
  "UniToken table 6: 2M and 10M rows of understanding, one epoch, per cent",
)  # fmt: skip

# ------------------------------------- UniToken, grid and base view (§3.1)

_LETTERS = "letters (text reading)"
_START = "unitoken_reading_start"
_SHAPES = "--config.data.train.shapes_signs.weight=0"
# The encoder has seen shapes before it sees letters, as SigLIP has photographs;
# all else starts anew, whatever an arm sees.
_ENCODER = tuple(f"--config.init.{k}=new" for k in ("decoder", "projector"))
_FROZEN = "--config.optim.rates.vit=0"


def _reads(
  name: str, title: str, argument: str, flags: tuple[str, ...] = (),
  published: float = 0.0, follows: str = _START,
) -> Arm:  # fmt: skip
  """A run on shapes and signs, whose encoder comes from one on shapes alone."""
  return Arm(
    f"unitoken_reading_{name}", title, argument, flags,
    ("reading", "captions"),
    published={_LETTERS: published} if published else {}, follows=follows,
  )  # fmt: skip


_READING = Study(
  "Small words, by what is seen of their scene",
  _UNITOKEN,
  {"words": "reading/exact", _LETTERS: "reading/letters",
   "held-out words": "reading_held_out/exact",
   "their letters": "reading_held_out/letters",
   "captions": "captions/exact"},
  (
    Arm(_START, "Shapes alone", "reading,i2t_only", (_SHAPES,), ()),
    _reads("grid", "Codes, base view and grid; encoder tuned",
           "reading,i2t_only", _ENCODER),
    _reads("grid_frozen", "Codes, base view and grid; encoder frozen",
           "reading,i2t_only", (*_ENCODER, _FROZEN)),
    _reads("base", "Codes and base view; encoder tuned",
           "reading,base,i2t_only", _ENCODER, 50.1),
    _reads("base_frozen", "Codes and base view; encoder frozen",
           "reading,base,i2t_only", (*_ENCODER, _FROZEN)),
    _reads("discrete", "Codes alone", "reading,discrete,i2t_only",
           published=28.7, follows=""),
  ),
  "UniToken table 5, understanding alone: Chameleon's architecture and "
  "UniToken with the base view, 7B, per cent; it has no row with the grid",
)  # fmt: skip

STUDIES: Mapping[str, Study] = {
  "liquid1": _LIQUID1,
  "liquid_scaling": _SCALING,
  "liquid6": _LIQUID6,
  "liquid10": _LIQUID10,
  "unitoken5": _UNITOKEN5,
  "unitoken6": _UNITOKEN6,
  "unitoken_reading": _READING,
  **VARGPT_STUDIES,
  **DRAWING_STUDIES,
}
