"""Experiments of VARGPT: which runs each needs.

VARGPT (arXiv 2501.12327) tables 4 and 5, and what it says of sharing one
network. Runs are the stages of configs/vargpt_shapes.py: of a budget of N steps
stage 3 has N, every other run as many more or fewer as in the demo. Columns
name our measure and, in brackets, the paper's of the same kind.
"""

from collections.abc import Mapping

from unifluid_jax.evals.published.paper_tables import Arm, Study

_CONFIG = "configs/vargpt_shapes.py"
_DRAWS = ("geneval", "fid")
_READS = ("vqa", "captions", "draws_when_asked")

# Steps of the demo's runs, as the configurations have them; "classes" is the
# class-conditional one, of configs/var.py.
STEPS = {
  "classes": 700, "stage0": 1100, "stage1": 150, "stage2": 500,
  "stage3": 900, "joint": 2000,
}  # fmt: skip


def _share(run: str) -> float:
  return STEPS[run] / STEPS["stage3"]


def _frozen(*parts: str) -> tuple[str, ...]:
  return tuple(f"--config.optim.rates.{part}=0" for part in parts)


def _rows(**rows: int) -> tuple[str, ...]:
  return tuple(f"--config.batch.{task}={n}" for task, n in rows.items())


# ------------------------------------------------- where every stage starts

# In place of VAR and LLaVA-1.5, see configs/vargpt_shapes.py.
_VAR = Arm(
  "vargpt_var", "Class-conditional VAR", "shapes", metrics=(),
  config="configs/var.py", share=_share("classes"),
)  # fmt: skip
_LLAVA = Arm(
  "vargpt_stage0", "Understanding alone", "stage0", metrics=(),
  share=_share("stage0"),
)  # fmt: skip
_STAGE1 = Arm(
  "vargpt_stage1", "Stage 1", "stage1", metrics=(), follows=_LLAVA.name,
  starts={"visual_decoder": f"{_VAR.name}#decoder"}, share=_share("stage1"),
)  # fmt: skip
_STAGE2 = Arm(
  "vargpt_stage2", "Stage 2", "stage2", metrics=(), follows=_STAGE1.name,
  share=_share("stage2"),
)  # fmt: skip


def _pretrained(arm: Arm) -> Arm:
  """The arm, started as stage 1 is."""
  return arm._replace(
    argument=f"{arm.argument},pretrained", follows=_STAGE1.follows,
    starts=_STAGE1.starts,
  )  # fmt: skip


# ------------------------------------------------------------------- table 4

_FID, _GENEVAL = "Fréchet distance (FID)", "GenEval (CLIP score)"


def _draws(arm: Arm, title: str, fid: float, clip: float) -> Arm:
  known = {_FID: fid, _GENEVAL: clip}
  return arm._replace(title=title, metrics=_DRAWS, published=known)


def _stage3(name: str, *frozen: str) -> Arm:
  return Arm(
    f"vargpt_{name}", "", "stage3", _frozen(*frozen), follows=_STAGE2.name,
    share=_share("stage3"),
  )  # fmt: skip


_ALONE = _pretrained(_STAGE2._replace(name="vargpt_stage2_alone"))
_VARGPT4 = Study(
  "Stages left out, parts frozen in stage 3",
  _CONFIG,
  {_FID: "fid/generated", "Fréchet ratio": "fid/ratio",
   _GENEVAL: "geneval/overall"},
  (
    _VAR, _LLAVA, _STAGE1,
    _draws(_STAGE2, "Without stage 3", 20.1, 20.2),
    _draws(_stage3("stage3"), "Full", 12.6, 27.4),
    _draws(_stage3("stage3_projectors_frozen", "in_projector", "out_projector"),
           "Generation projectors frozen in stage 3", 16.2, 24.5),
    _draws(_stage3("stage3_decoder_frozen", "visual_decoder"),
           "Visual decoder frozen in stage 3", 17.8, 22.4),
    _ALONE,
    _draws(_stage3("without_stage1")._replace(follows=_ALONE.name),
           "Without stage 1", 14.6, 26.5),
    _draws(_pretrained(_stage3("stage3_alone")),
           "Without stages 1 and 2", 15.4, 21.3),
  ),
  "VARGPT table 4: Vicuna-7B and VAR-d30, 50,000 captions of ImageNet",
)  # fmt: skip

# ------------------------------------------------------------------- table 5

_MMMU, _MME = "QA (MMMU)", "captions (MME)"


def _reads(
  name: str, title: str, mmmu: float, mme: float, flags: tuple[str, ...] = ()
) -> Arm:
  """Stage 2, varied. Stage 3 changes nothing that understands."""
  return _STAGE2._replace(
    name=f"{_STAGE2.name}{name}", title=title, flags=flags, metrics=_READS,
    published={_MMMU: mmmu, _MME: mme},
  )  # fmt: skip


# The paper adds 130K instructions to draw to 1.17M to understand: of 56 rows
# that are 6. What is left out leaves fewer rows, as it leaves the paper fewer
# steps.
_VARGPT5 = Study(
  "Parts frozen in stage 2, sets left out or added",
  _CONFIG,
  {_MMMU: "vqa/all", _MME: "captions/exact",
   "draws when asked": "dialogue/draws_when_asked"},
  (
    _VAR, _LLAVA, _STAGE1,
    _reads("", "Full", 36.44, 1488.8),
    _reads("_projector_frozen", "Projector frozen", 35.19, 1452.0,
           _frozen("projector")),
    _reads("_decoder_frozen", "Language model frozen", 33.51, 1392.5,
           _frozen("decoder")),
    _reads("_no_dialogues", "Without dialogues (LLaVA-OneVision)", 33.56,
           1403.5, _rows(dialogue=0)),
    _reads("_no_i2t", "Without questions and captions (LLaVA-1.5)", 32.62,
           1256.2, _rows(i2t=0)),
    _reads("_more_t2i", "With more prompts to draw", 36.35, 1491.2,
           _rows(t2i=30)),
  ),
  "VARGPT table 5: Vicuna-7B; which of its sets, named in brackets, stands "
  "beside which of ours is our choice",
)  # fmt: skip

# ------------------------------------------------- one network or two (§7.1)


def _joint(
  name: str, title: str, variant: str = "", flags: tuple[str, ...] = ()
) -> Arm:
  """Everything trained at once, from scratch."""
  return Arm(
    f"vargpt_{name}", title, f"joint{variant}", flags, (*_DRAWS, *_READS),
    share=_share("joint"),
  )  # fmt: skip


_ONE = "--config.model.visual_decoder.depth=0"
_SHARED = Study(
  "One network or two; slots; what guidance leads away from",
  _CONFIG,
  {"GenEval": "geneval/overall", "Fréchet ratio": "fid/ratio",
   "QA": "vqa/all", "captions": "captions/exact",
   "draws when asked": "dialogue/draws_when_asked"},
  (
    _joint("joint", "Visual decoder; block-causal slots; null prompt"),
    _joint("joint_causal", "Causal slots", ",causal"),
    _joint("joint_noise", "Noise for the null prompt", ",noise"),
    _joint("joint_shared", "One backbone, of 4 layers", flags=(_ONE,)),
    # As many as both networks have.
    _joint("joint_shared_deep", "One backbone, of 8 layers",
           flags=(_ONE, "--config.model.decoder.depth=8")),
  ),
  "VARGPT §7.1 says without numbers that one network for both hurts both",
)  # fmt: skip

VARGPT_STUDIES: Mapping[str, Study] = {
  "vargpt4": _VARGPT4,
  "vargpt5": _VARGPT5,
  "vargpt_shared": _SHARED,
}
