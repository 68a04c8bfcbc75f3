"""dots3-note: a tower with rotary positions, whose blocks in the middle are mixtures of experts, and an audio encoder.

Names: rednote's Dots3NoteForConditionalGeneration as published, which transformers saves as well, with a configuration
of its own; llama.cpp's ``conversion/dots3.py`` and ``tools/mtmd/models/dots3note.cpp``. It is longer than other tables
for these two configurations, and two kinds of blocks.
"""

from collections.abc import Mapping
from typing import Any

from clipgguf.config import CLIP_STATISTICS
from clipgguf.errors import ConfigError, shown
from clipgguf.families import dots3_note_audio as audio
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, statistics
from clipgguf.family import Family
from clipgguf.inputs import Inputs, checked
from clipgguf.layers import linear, norm
from clipgguf.table import F32, INTEGERS, Prefix, Rule, Section, Types, Value

TOWER = Prefix("patch_embed.proj.weight", "vision_encoder.")

# fc1 gates, fc3 widens, fc2 narrows.
_FFN = {"fc1": ("ffn_gate", "ffn width"), "fc3": ("ffn_up", "ffn width"), "fc2": ("ffn_down", "width ffn")}


# Dots3NoteVisionConfig's.
PYRAMID = [-1] * 25 + [*range(4, 65, 4), 64]
# What llama.cpp's graph takes for granted.
_GRANTED = {
    "adapter_type": "patch_merger",
    "pre_pixel_shuffle": True,
    "router_scoring_func": "sigmoid",
    "router_scale": 1.0,
    "router_scaling_factor": 1.0,
    "use_qk_norm": True,
}


def pyramid(inputs: Inputs) -> list[int]:
    """Return for each block how many experts it has, 0 or less for one without; as published, or as transformers.

    Raises ConfigError where the configuration is one that llama.cpp has no graph for.
    """
    for key, wanted in _GRANTED.items():
        where, found = inputs.find(f"vision_config.{key}")
        if found not in (None, wanted):
            raise ConfigError(f"{where} is {shown(found)}, supported is {shown(wanted)}")
    where, found = inputs.find("vision_config.pyramid_num_routed")
    of_kinds, kinds = inputs.find("vision_config.mlp_layer_types")
    if found is not None or kinds is None:
        return PYRAMID if found is None else list(checked(INTEGERS, where, found))
    counts = []
    for number, kind in enumerate(checked(list, of_kinds, kinds)):
        own = f"vision_config.per_layer_config.{number}.num_local_experts"
        where, count = inputs.find(f"{own}|vision_config.num_local_experts")
        counts.append(checked(int, where, 64 if count is None else count) if kind == "sparse" else 0)
    return counts


def experts(values: Mapping[str, Any]) -> list[int]:
    """Return for each block how many experts it has, 0 for one without."""
    counts, blocks = values["vision.pyramid"], values["vision.blocks"]
    if len(counts) != blocks:
        raise ValueError(
            f"vision_config: pyramid_num_routed, or mlp_layer_types, has {len(counts):,} blocks, num_hidden_layers is "
            f"{blocks:,}"
        )
    return [max(0, count) for count in counts]


FAMILY = Family(
    title="dots3-note",
    projector="dots3note_v",
    projector_key="vision.projector",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size|hidden_size", kind=int),
        Value("vision.image", default=0),  # Images of any size.
        Value("vision.patch", "vision_config.patch_size", 14),
        # As published, hidden_size is the width of the adapter's output.
        Value("vision.width", "vision_config.embed_dim|vision_config.hidden_size", 1536),
        Value("vision.ffn", "vision_config.intermediate_size", 4224),
        Value("vision.expert", "vision_config.moe_intermediate_size", 2112),
        Value("vision.blocks", "vision_config.num_hidden_layers", 42),
        Value("vision.heads", "vision_config.num_attention_heads|vision_config.num_heads", 24),
        Value("vision.head", of=lambda v: v["vision.width"] // v["vision.heads"]),
        Value("vision.epsilon", "vision_config.rms_norm_eps", 1e-5),
        Value("vision.merge", "vision_config.spatial_merge_size", 2),
        Value("vision.merged", of=lambda v: v["vision.merge"] ** 2 * v["vision.width"]),
        *statistics(CLIP_STATISTICS),
        Value("vision.min_pixels", "processor.min_pixels", kind=int),
        Value("vision.max_pixels", "processor.max_pixels", kind=int),
        Value("vision.pyramid", pyramid),
        Value("vision.experts", of=experts),
        Value("vision.dense", of=lambda v: [n for n, count in enumerate(v["vision.experts"]) if not count]),
        Value("vision.sparse", of=lambda v: [n for n, count in enumerate(v["vision.experts"]) if count]),
        Value("vision.capacity", "vision_config.capacity_factor|vision_config.num_experts_per_tok", 2.0),
        Value("vision.experts_used", of=lambda v: int(v["vision.capacity"])),
        Value("silu", default=True),
        *audio.VALUES,
    ),
    sections=(
        Section(
            TOWER + "patch_embed.",
            "v.",
            (
                *linear("proj", "patch_embd", "width", "3 patch patch'"),
                *norm("norm", "pre_ln", bias=False),
            ),
        ),
        Section(
            TOWER + "blocks.{}.",
            "v.blk.{}.",
            (
                *norm("norm_1", "ln1", bias=False),
                *linear("attn.qkv", "attn_qkv", "(3 width')", "width", bias=False),
                *norm("attn.q_norm", "attn_q_norm", "head", bias=False),
                *norm("attn.k_norm", "attn_k_norm", "head", bias=False),
                *linear("attn.proj", "attn_out", "width", "width'", bias=False),
                *norm("norm_2", "ln2", bias=False),
            ),
            times="blocks",
        ),
        Section(
            TOWER + "blocks.{}.mlp.",
            "v.blk.{}.",
            tuple(Rule(f"{theirs}.weight", f"{ours}.weight", shape) for theirs, (ours, shape) in _FFN.items()),
            times="dense",
            same_numbers=True,
        ),
        Section(
            TOWER + "blocks.{}.mlp.",
            "v.blk.{}.",
            (
                Rule("gate_weight", "ffn_gate_inp.weight", "experts width"),
                Rule("router_bias", "exp_probs_b.weight", "experts"),
                *(
                    Rule(
                        f"experts.{{}}.{theirs}.weight",
                        f"{ours}_exps.weight",
                        shape.replace("ffn", "expert"),
                        stack="experts",
                    )
                    for theirs, (ours, shape) in _FFN.items()
                ),
            ),
            times="sparse",
            same_numbers=True,
        ),
        Section(TOWER, "mm.", norm("post_trunk_norm", "post_norm", bias=False)),
        Section(
            TOWER + "adapter.",
            "mm.",
            (
                *norm("ln_q", "input_norm"),
                *linear("mlp.0", "0", "merged", "merged'"),
                *linear("mlp.2", "2", "projection", "merged"),
            ),
        ),
        *audio.SECTIONS,
    ),
    merge="vision.merge",
    left_out=(*LANGUAGE_MODEL, r"model\.mtp\."),
    apart={"vision": r"vision_encoder\.", "audio": r"audio_encoder\."},
    told_by={"audio": "audio_config"},
    # Experts' scores are often almost the same, so that rounding would choose others.
    types=(Types("*.ffn_gate_inp.weight", F32), *audio.TYPES),
)
