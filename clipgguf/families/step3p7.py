"""Step3-VL and Step 3.7: a tower with rotary positions beside learned ones, and two convolutions that halve its grid.

Names: stepfun-ai/Step3-VL-10B, transformers' Step3p7ForConditionalGeneration; llama.cpp's ``conversion/step3.py`` and
``tools/mtmd``. It is longer than other tables for the settings that readers take for granted.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.config import CLIP_STATISTICS
from clipgguf.errors import shown
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, statistics
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import F16, F32, Prefix, Rule, Section, Types, Value

TOWER = Prefix("conv1.weight", "vision_model.")
PROJECTOR = Prefix("vit_large_projector.weight")


def scale(values: Mapping[str, Any]) -> int:
    """Return by how much the two convolutions make the grid smaller along a side."""
    if values["stride"] != 2:
        raise ValueError(f"understand_projector_stride is {values['stride']}, readers know 2 only")
    return 4


def is_gelu(values: Mapping[str, Any]) -> bool:
    """Return that the activation is no GELU but the quick one, which is what readers take where no key tells."""
    if values["act"] != "quick_gelu":
        raise ValueError(f"vision_config: hidden_act is {shown(values['act'])}, should be 'quick_gelu'")
    return False


FAMILY = Family(
    title="Step3-VL",
    projector="step3vl",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", 4096),
        Value("vision.image", "vision_config.image_size", 728),
        Value("vision.patch", "vision_config.patch_size", 14),
        Value("vision.channels", "vision_config.num_channels", 3),
        Value("vision.width", "vision_config.hidden_size|vision_config.width", 1536),
        Value("ffn_ratio", "vision_config.mlp_ratio", 8960 / 1536),
        Value("ffn", "vision_config.intermediate_size", 0),
        Value("vision.ffn", of=lambda v: v["ffn"] or round(v["vision.width"] * v["ffn_ratio"])),
        Value("vision.blocks", "vision_config.num_hidden_layers|vision_config.layers", 47),
        Value("vision.heads", "vision_config.num_attention_heads|vision_config.heads", 16),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-5),
        Value("vision.positions", of=lambda v: (v["vision.image"] // v["vision.patch"]) ** 2),
        *statistics(CLIP_STATISTICS),
        Value("stride", "understand_projector_stride", 2),
        Value("vision.scale", of=scale),
        # So large Step3-VL's own code makes an image at most; no configuration says it.
        Value("vision.preproc_image", default=3024),
        Value("act", "vision_config.hidden_act", "quick_gelu"),
        Value("gelu", of=is_gelu, unless=False),
    ),
    sections=(
        Section(
            TOWER,
            "v.",
            (
                Rule("conv1.weight", "patch_embd.weight", "width channels patch patch'"),
                Rule("positional_embedding", "position_embd.weight", "positions width"),
                *norm("ln_pre", "pre_ln"),
            ),
        ),
        Section(
            TOWER + "transformer.resblocks.{}.",
            "v.blk.{}.",
            (
                *norm("ln_1", "ln1"),
                Rule("attn.in_proj_weight", "attn_qkv.weight", "(3 width') width"),
                Rule("attn.in_proj_bias", "attn_qkv.bias", "(3 width)"),
                *linear("attn.out_proj", "attn_out", "width", "width'"),
                Rule("ls_1.gamma", "ls1.weight", "width"),
                *norm("ln_2", "ln2"),
                *linear("mlp.c_fc", "ffn_up", "ffn", "width"),
                *linear("mlp.c_proj", "ffn_down", "width", "ffn"),
                Rule("ls_2.gamma", "ls2.weight", "width"),
            ),
            times="blocks",
        ),
        Section(
            TOWER,
            "mm.",
            (
                *linear("vit_downsampler1", "0", "half", "width 3 3'"),
                *linear("vit_downsampler2", "1", "quarter", "half 3 3'"),
            ),
        ),
        Section(PROJECTOR, "mm.", linear("vit_large_projector", "model.fc", "projection", "quarter", bias=False)),
    ),
    merge="vision.scale",
    left_out=LANGUAGE_MODEL,
    types=(Types("mm.0.weight", F32, in_f16=F16), Types("mm.1.weight", F32, in_f16=F16)),
)
