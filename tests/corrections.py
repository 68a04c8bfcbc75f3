"""What is done so that llama.cpp's converter, where it has a fault, gives the fixtures what is right."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Correction:
    """What is done so that the reference, which has a fault, writes what it should.

    ``checkpoint`` are changes of the checkpoint's names before it reads them, ``file`` of the file's names after it has
    written them: regular expressions and what takes their place. ``config`` is merged into config.json, and before it
    the object ``lifted`` in it; ``processor`` into preprocessor_config.json. ``without`` are patterns of the tensors
    and keys that it writes and that the fixture shall not have. ``ones`` are so many axes of length 1 that the
    checkpoint's tensors of a pattern get at their ends before it reads them; ``types`` the types, of all outtypes, of
    the file's tensors of a pattern. ``constants`` are given to its classes, by "module.Class.NAME"; ``keys`` are added
    to the file's metadata. Without ``asserts`` it does not insist on the sizes of one published model. ``within`` are
    the file's tensors of a pattern whose last bits depend on who computes them, and by how much they may differ.
    """

    why: str = ""
    checkpoint: tuple[tuple[str, str], ...] = ()
    file: tuple[tuple[str, str], ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    lifted: str = ""
    ones: tuple[tuple[str, int], ...] = ()
    types: tuple[tuple[str, str], ...] = ()
    processor: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    asserts: bool = True
    within: tuple[tuple[str, float], ...] = ()


_ROW_END = Correction(
    why="It drops whatever is called language_model.*, and with it the row of the embeddings that tools/mtmd asks for.",
    checkpoint=((r"^(model\.)?language_model\.(model\.)?embed_tokens\.", "model.embed_tokens."),),
)
_FOLDED_NORM = Correction(
    why="It names the folded batch norm as another model's variance; its reader asks for conv_norm.",
    file=((r"conv_norm_var\.", "conv_norm."),),
)
_VIT_H = Correction(
    why="It takes the sizes of ViT-H for granted, whatever the configuration says, and ImageNet's statistics for "
    "those that the processor calls norm_mean and norm_std.",
    processor={"image_mean": [0.25, 0.5, 0.75], "image_std": [0.5, 0.25, 0.125]},
    constants={
        "nemotron.NemotronNanoV2VLModel._vit_hidden_size": 64,
        "nemotron.NemotronNanoV2VLModel._vit_intermediate_size": 160,
        "nemotron.NemotronNanoV2VLModel._vit_num_layers": 4,
        "nemotron.NemotronNanoV2VLModel._vit_num_heads": 2,
    },
)
# Torch has exponentials and sines of its own, which are rounded otherwise in some last bits.
SINUSOIDS = (("a.position_embd.weight", 4e-5),)
_OMNI = "It looks for thinker.visual.* under a name that it has taken away before."
_OMNI_VISUAL = ((r"^thinker\.visual\.", "model.visual."),)
# Some values of torch's softplus, which are below 1 here, are off by one in the last bit.
SOFTPLUS = ((r"a\.blk\.\d+\.per_dim_scale\.weight", 6e-8),)
# So are some of its exponentials, and of what is divided by them; which are below 2 here.
SNAKE = ((r"a\.gen\.wav\.dac\..*\.(alpha|beta)", 5e-7),)
# By the fixture's name.
CORRECTIONS: dict[str, Correction] = {
    "cogvlm": Correction(
        why="It does not write the activation, for which its reader takes quick GELU; the model has GELU.",
        keys={"clip.use_gelu": ["BOOL", True]},
    ),
    "gemma3--resaved": Correction(
        why="It does not know the tower as transformers 5 saves it, without 'vision_model.' in its names.",
        checkpoint=((r"^vision_tower\.", "vision_tower.vision_model."),),
    ),
    "gemma3n": Correction(
        why="The reference leaves the scales of layers flat, which llama.cpp cannot multiply channels by: it aborts. "
        "ggml takes depthwise kernels in F16 only, others in F16 and F32, and aborts on the reference's bf16 and f32 "
        "files. It does not know the audio tower's first norms, which it knows of Gemma 4.",
        checkpoint=((r"^model\.audio_tower\.(subsample\w+\.)conv_(\d)\.norm", r"conformer.\1layer\2.norm"),),
        ones=((r"layer_scale\.gamma$", 2),),
        types=(
            (r"v\..*(dw_\w+\.conv|down_conv)\.weight", "F16 F16 F16 F16"),
            (r"v\.(blk|msfa)\..*(conv\w*|proj)\.weight", "F32 F16 F16 F16"),
        ),
    ),
    "gemma4": Correction(
        why="It names no activation, so that llama.cpp computes quick GELU, where Gemma4VisionMLP has GELU: of a tiny "
        "model's features, the difference to transformers' is 3.7 % without the key and 0.7 % with it.",
        keys={"clip.use_gelu": ["BOOL", True]},
        within=SOFTPLUS,
    ),
    "gemma4--image": Correction(
        why="It names no activation, as for gemma4.",
        keys={"clip.use_gelu": ["BOOL", True]},
    ),
    "granite4_vision--from_the_front": Correction(
        why="It sorts deepstack_layer_map before it counts the projectors, and takes hidden state 2 for block 2's, "
        "which is block 1's, as transformers counts; so it gets a sorted map of layers counted from the back.",
        checkpoint=(
            (r"layerwise_projectors\.0", "layerwise_projectors.x"),
            (r"layerwise_projectors\.1", "layerwise_projectors.0"),
            (r"layerwise_projectors\.x", "layerwise_projectors.1"),
        ),
        config={"deepstack_layer_map": [[-3, 1], [-1, 0]], "spatial_vision_layer": -1},
    ),
    "granite_speech": _FOLDED_NORM,
    "granite_speech--plus": _FOLDED_NORM,
    "internvl--hf": Correction(
        why="It drops every tensor without 'model.' before it, and writes a file without any.",
        checkpoint=((r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),),
    ),
    "lfm2_audio": Correction(
        why="It knows no convolution of a number that is not below the number of blocks, and is told of 7.",
        config={"encoder": {"n_layers": 7}},
        keys={"clip.audio.block_count": ["UINT32", 2]},
    ),
    "lfm2_vl--resaved": Correction(
        why="It does not know the tower as transformers 5 saves it, without 'vision_model.' in its names.",
        checkpoint=((r"^model\.vision_tower\.", "model.vision_tower.vision_model."),),
    ),
    "llama4": Correction(
        why="Gemma 4's norm after attention has the same name, so that it takes the second norm for one.",
        file=((r"attn_post_norm", "ln2"),),
    ),
    "nemotron_nano_v2_vl": _VIT_H,
    "nemotron_nano_v2_vl--omni": replace(
        _VIT_H,
        why=f"{_VIT_H.why} It knows no convolution of a number that is not below that of blocks, and is told of 7.",
        constants={**_VIT_H.constants, "nemotron.NemotronNanoV2VLModel._vit_num_layers": 7},
        keys={"clip.vision.block_count": ["UINT32", 4]},
    ),
    "pixtral": _ROW_END,
    "pixtral--mistral3": _ROW_END,
    "qwen2_5_vl--in_memory": Correction(
        why="It drops whatever is not called visual.*, and writes a file without tensors.",
        checkpoint=((r"^model\.visual\.", "visual."),),
    ),
    "qwen2_5_omni": Correction(within=SINUSOIDS),
    "qwen3_asr": Correction(within=SINUSOIDS),
    "qwen3_asr--hf": Correction(
        why="It knows the published layout alone, whose configuration is inside the thinker's.",
        checkpoint=(
            (r"^model\.audio_tower\.", "thinker.audio_tower."),
            (r"^model\.multi_modal_projector\.linear_", "thinker.audio_tower.proj"),
        ),
        config={
            "thinker_config": {
                "audio_config": {
                    "num_mel_bins": 128,
                    "d_model": 64,
                    "encoder_ffn_dim": 160,
                    "encoder_attention_heads": 2,
                    "encoder_layers": 4,
                },
                "text_config": {"hidden_size": 96},
            }
        },
        within=SINUSOIDS,
    ),
    "qwen3_omni_moe": Correction(why=_OMNI, checkpoint=_OMNI_VISUAL, within=SINUSOIDS),
    "qwen3_omni_moe--flat": Correction(why=_OMNI, checkpoint=_OMNI_VISUAL, within=SINUSOIDS),
    "qwen3_tts": Correction(within=SNAKE),
}
