"""GLM-ASR: Whisper's encoder, whose frames are stacked, a projector, and tokens before and after a sound.

Names: zai-org's GlmasrModel (remote code); llama.cpp's ``conversion/ultravox.py``. The norm before the projector is
the encoder's last; ``audio_encoder.proj`` is not used with a projector. What transformers 5 calls GlmAsr has other
names, and no table of positions.
"""

from clipgguf.families.bases import LANGUAGE_MODEL, MTMD, settled
from clipgguf.families.whisper import TYPES, blocks, embeddings, stacked, whisper_values
from clipgguf.family import Family
from clipgguf.layers import linear, norm
from clipgguf.table import Prefix, Rule, Section, Value

TOWER = Prefix("conv1.weight", "audio_encoder.whisper.")
ADAPTER = Prefix("audio_bos_eos_token.weight", "audio_encoder.")

FAMILY = Family(
    title="GLM-ASR",
    projector="glma",
    base=MTMD,
    values=(
        *whisper_values("whisper_config", "lm_config", 4096),
        *stacked(Value("audio.stack", "merge_factor", 4)),
        settled("whisper_config.activation_function", "gelu"),
        settled("adapter_type", "mlp"),
        settled("mlp_adapter_act", "gelu"),
    ),
    sections=(
        embeddings(TOWER),
        blocks(TOWER),
        Section(
            ADAPTER,
            "mm.a.",
            (
                *norm("layer_norm|adapting.layer_norm", "norm_pre"),
                *linear("adapting.0", "mlp.1", "hidden", "stacked"),
                *linear("adapting.2", "mlp.2", "projection", "hidden"),
            ),
            part="audio",
        ),
        Section(ADAPTER, "v.", (Rule("audio_bos_eos_token.weight", ("boi", "eoi"), "2 projection"),), part="audio"),
    ),
    left_out=(*LANGUAGE_MODEL, r"audio_encoder\.(adapting\.)?proj\."),
    types=TYPES,
)
