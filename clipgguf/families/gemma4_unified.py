"""Gemma 4 unified: no transformer; each patch of an image, and each 40 ms of sound, is one matrix away from the text.

Names: transformers' Gemma4UnifiedForConditionalGeneration, as published and as transformers 5 has them; llama.cpp's
``conversion/gemma.py`` and ``tools/mtmd``.
"""

from clipgguf.families import gemma4_audio
from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled, statistics
from clipgguf.families.gemma4 import APART, PROJECTOR, STATISTICS
from clipgguf.family import Family
from clipgguf.layers import norm
from clipgguf.table import Prefix, Rule, Section, Value

EMBEDDER = Prefix("patch_dense.weight", "model.vision_embedder.")

FAMILY = Family(
    title="Gemma 4 unified",
    projector="gemma4uv",
    projector_key="vision.projector",
    base=MTMD,
    values=(
        Value("vision.projection", "text_config.hidden_size", 2304),
        Value("vision.image", default=224),  # No reader uses it.
        Value("vision.patch", "vision_config.patch_size", 16),
        Value("vision.width", "vision_config.mm_embed_dim", 3840),
        # There is no transformer.
        Value("vision.ffn", default=0),
        Value("vision.blocks", default=0),
        Value("vision.heads", default=0),
        Value("vision.epsilon", "vision_config.rms_norm_eps", 1e-6),
        Value("vision.positions", "vision_config.mm_posemb_size", 1120),
        *statistics(STATISTICS),
        # Patches are merged before anything else, so that these are the patches of the matrix.
        Value("vision.scale", "vision_config.pooling_kernel_size", 3, unless=3),
        Value("vision.side", of=lambda v: v["vision.patch"] * v.get("vision.scale", 3)),
        Value("audio.projector", default="gemma4ua"),
        Value("audio.projection", "text_config.hidden_size", 2304),
        Value("audio.width", "audio_config.audio_embed_dim", 640),
        Value("audio.ffn", default=0),
        Value("audio.blocks", default=0),
        Value("audio.heads", default=0),
        Value("audio.epsilon", "audio_config.rms_norm_eps", 1e-6),
        # There are none: llama.cpp takes 640 samples as they are.
        Value("audio.mel_bins", default=128),
        settled("audio_config.audio_embed_dim", 640, part="audio"),
        settled("audio_config.rms_norm_eps", 1e-6, part="audio"),
    ),
    sections=(
        Section(
            PROJECTOR,
            "mm.",
            (
                Rule(
                    "embed_vision.embedding_projection.weight|embed_vision.multimodal_embedder.embedding_projection.weight",
                    "input_projection.weight",
                    "projection width",
                ),
            ),
        ),
        Section(
            EMBEDDER,
            "v.",
            (
                Rule("patch_ln1.weight", "patch_norm.1.weight", "(side side' 3) -> (3 side side')"),
                Rule("patch_ln1.bias", "patch_norm.1.bias", "(side side' 3) -> (3 side side')"),
                Rule("patch_dense.weight", "patch_embd.weight", "width (side side' 3) -> width (3 side side')"),
                Rule("patch_dense.bias", "patch_embd.bias", "width"),
                *norm("patch_ln2", "patch_norm.2"),
                Rule("pos_embedding", "position_embd.weight", "positions 2 width -> 2 positions width"),
                *norm("pos_norm", "patch_norm.3"),
            ),
        ),
        Section(
            gemma4_audio.PROJECTOR,
            "mm.a.",
            (Rule("embedding_projection.weight", "input_projection.weight", "projection width"),),
            part="audio",
        ),
    ),
    merge="vision.scale",
    # Pictures have any size.
    tokens=lambda *_: 0,
    left_out=LANGUAGE_MODEL,
    apart=APART,
    told_by={"audio": "audio_config"},
)
