"""Nemotron Nano V2 VL: RADIO's tower with registers, for images of one size, and two matrices after an RMS norm.

Nemotron Omni has Parakeet besides. Names: nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16; transformers' RadioConfig and
NemotronH_Omni_Reasoning_V3_Config; llama.cpp's ``conversion/nemotron.py`` and ``tools/mtmd``. llama.cpp's converter
takes ViT-H's sizes for granted, and ImageNet's mean and standard deviation for those that the processor calls norm_mean
and norm_std. It is the values and the layouts of both towers that make the table long.
"""

from clipgguf.config import CLIP_STATISTICS, ImageStatistics
from clipgguf.families import parakeet
from clipgguf.families.bases import MTMD
from clipgguf.families.conformer_tables import TYPES
from clipgguf.family import Family
from clipgguf.inputs import Inputs
from clipgguf.layers import linear, norm
from clipgguf.resizing import resized
from clipgguf.table import Prefix, Rule, Section, Value

TOWER = Prefix("patch_generator.embedder.weight", "vision_model.radio_model.model.")
PROJECTOR = Prefix("mlp1.0.weight", "")


def statistics(inputs: Inputs) -> ImageStatistics:
    """Return the image statistics, which the processor's file has under names of its own."""
    return inputs.image_statistics(CLIP_STATISTICS, names=("norm_mean", "norm_std"))


FAMILY = Family(
    title="Nemotron Nano V2 VL or Omni",
    projector="nemotron_v2_vl",
    projector_key="vision.projector",
    alone_key="projector",
    base=MTMD,
    values=(
        Value("vision.projection", "llm_config.hidden_size|text_config.hidden_size|hidden_size", 4096),
        Value("vision.image", "force_image_size", 512),
        Value("vision.patch", "vision_config.patch_size|patch_size", 16),
        Value("vision.width", "vision_config.hidden_size|vit_hidden_size|vision_hidden_size", 1280),
        Value("ffn_ratio", "vision_config.mlp_ratio", 4.0),
        Value("vision.ffn", of=lambda v: int(v["vision.width"] * v["ffn_ratio"])),
        Value("vision.blocks", "vision_config.num_hidden_layers", 32),
        Value("vision.heads", "vision_config.num_attention_heads", 16),
        Value("vision.epsilon", "vision_config.layer_norm_eps", 1e-6),
        Value("vision.mean", lambda inputs: statistics(inputs).mean),
        Value("vision.std", lambda inputs: statistics(inputs).std),
        Value("vision.side", of=lambda v: v["vision.image"] // v["vision.patch"]),
        Value("vision.positions", of=lambda v: v["vision.side"] ** 2),
        Value("gelu", default=True),
        Value("ratio", "downsample_ratio", 0.5),
        Value("vision.scale", of=lambda v: int(1 / v["ratio"])),
        Value("vision.merged", of=lambda v: v["vision.width"] * v["vision.scale"] ** 2),
        *parakeet.VALUES,
    ),
    sections=(
        Section(
            TOWER,
            "v.",
            (
                Rule("patch_generator.cls_token.token", "class_embd", "registers width"),
                Rule(
                    "patch_generator.embedder.weight",
                    "patch_embd.weight",
                    "width (3 patch patch') -> width 3 patch patch'",
                ),
                Rule(
                    "patch_generator.pos_embed|patch_generator.pos_embed.weight",
                    "position_embd.weight",
                    "1 any width",
                    then=resized("vision.side"),
                    becomes="1 positions width",
                ),
            ),
        ),
        Section(
            TOWER + "blocks.{}.",
            "v.blk.{}.",
            (
                *norm("norm1", "ln1"),
                *linear("attn.qkv", "attn_qkv", "(3 width')", "width"),
                *linear("attn.proj", "attn_out", "width", "width'"),
                *norm("norm2", "ln2"),
                *linear("mlp.fc1", "ffn_up", "ffn", "width"),
                *linear("mlp.fc2", "ffn_down", "width", "ffn"),
            ),
            times="blocks",
        ),
        Section(
            PROJECTOR + "mlp1.",
            "mm.model.mlp.",
            (
                *norm("0", "0", "merged", bias=False),
                *linear("1", "1", "hidden", "merged", bias=False),
                *linear("3", "3", "projection", "hidden", bias=False),
            ),
            # Its reader loads no sound without.
            also="audio",
        ),
        *parakeet.SECTIONS,
    ),
    merge="vision.scale",
    # RADIO normalizes images itself, which its processor does here; videos have kernels of their own.
    left_out=(
        *(r"(model\.)?language_model\.", r"lm_head\.", r"sound_encoder\..*\.num_batches_tracked$"),
        *(r"(.*\.)?radio_model\.(input_conditioner\.|summary_idxs$)", r"(.*\.)?patch_generator\.video_embedder\."),
    ),
    apart={"vision": r"vision_model\.", "audio": r"sound_(encoder|projection)\."},
    told_by={"audio": "sound_config"},
    types=TYPES,
)
