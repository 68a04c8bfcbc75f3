"""The torch reference: convert a CLIP checkpoint as everybody did, with the whole model in memory.

transformers loads the model in float32, every tensor is renamed and cast with numpy, and GGUFWriter gets them all at
once. Nothing here comes from ``clipgguf``, so that equal bytes mean something: the configuration and its defaults, the
tensors and their order are transformers', and the names follow a rule of their own. Where a tower's ``projection_dim``
in config.json contradicts the projection's rows (LAION's H and bigG configs), the rows are written.

Needs torch, transformers, pillow and gguf: ``pip install -e .[reference]``.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter, LlamaFileType
from numpy.typing import NDArray
from transformers import CLIPImageProcessor, CLIPModel

FILE_TYPES = {"f16": LlamaFileType.MOSTLY_F16, "f32": LlamaFileType.ALL_F32}

# What becomes of each dotted part of a tensor's name; numbers and KEPT stay as they are, LEFT_OUT vanish.
RENAMED = {
    "text_model": "t",
    "vision_model": "v",
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "patch_embedding": "patch_embd",
    "class_embedding": "class_embd",
    "layers": "blk",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "out_proj": "attn_out",
    "fc1": "ffn_down",  # Swapped with ffn_up, and every reader counts on it.
    "fc2": "ffn_up",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "pre_layrnorm": "pre_ln",
    "post_layernorm": "post_ln",
    "final_layer_norm": "post_ln",
}
KEPT = {"text_projection", "visual_projection", "weight", "bias"}
LEFT_OUT = {"embeddings", "encoder", "self_attn", "mlp"}
NEVER_WRITTEN = {"logit_scale"}
TEXT_PARTS = {"text_model", "text_projection"}


def convert_with_torch(
    model_dir: Path, out_dir: Path, *, text_only: bool = False, vision_only: bool = False, outtype: str = "f16"
) -> Path:
    """Convert a Hugging Face CLIP directory with torch, and return the path of the finished file in ``out_dir``.

    ``outtype`` is "f16" or "f32". Float64 is rounded to float32 on the way. Raises ValueError when the tensors are not
    exactly those that transformers expects, KeyError for an unknown ``outtype`` or a tensor that no rule names.
    """
    file_type, model = FILE_TYPES[outtype], _load(model_dir)
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    tower = "text" if text_only else "vision" if vision_only else ""
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / f"{tower}{'-' if tower else ''}model-{outtype}.gguf"
    writer = GGUFWriter(path, arch="clip")
    writer.add_bool("clip.has_text_encoder", not vision_only)
    writer.add_bool("clip.has_vision_encoder", not text_only)
    writer.add_bool("clip.has_llava_projector", False)
    writer.add_file_type(file_type)
    writer.add_name(config.get("_name_or_path", model_dir.absolute().name))
    writer.add_description(f"{tower}-only CLIP model" if tower else "two-tower CLIP model")
    if not vision_only:
        _add_text(writer, model, json.loads((model_dir / "vocab.json").read_text(encoding="utf-8")))
    if not text_only:
        _add_vision(writer, model, model_dir)
    writer.add_bool("clip.use_gelu", model.config.vision_config.hidden_act == "gelu")
    for name, tensor in model.state_dict().items():
        is_text = name.split(".")[0] in TEXT_PARTS
        if name in NEVER_WRITTEN or (vision_only if is_text else text_only):
            continue
        new_name = gguf_name(name)
        writer.add_tensor(new_name, _cast(new_name, tensor.squeeze().numpy(), outtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    """Return the GGUF name of a tensor of CLIPModel; KeyError when a part of its name is unknown."""
    parts = (part for part in name.split(".") if part not in LEFT_OUT)
    return ".".join(part if part.isdigit() or part in KEPT else RENAMED[part] for part in parts)


def _load(model_dir: Path) -> Any:
    # Any, because the annotation of from_pretrained does not know that output_loading_info makes it return a pair.
    loaded: Any = CLIPModel.from_pretrained(
        model_dir, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    model, info = loaded
    # transformers fills a gap with random numbers, and says so only in its log.
    problems = {what: sorted(map(str, info[what])) for what in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(problems.values()):
        raise ValueError(f"{model_dir}: {problems}")
    return model


def _add_text(writer: GGUFWriter, model: Any, vocabulary: Mapping[str, int]) -> None:
    config = model.config.text_config
    writer.add_uint32("clip.text.context_length", config.max_position_embeddings)
    _add_tower(writer, "clip.text", config, model.text_projection)
    writer.add_token_list(sorted(vocabulary, key=lambda token: vocabulary[token]))


def _add_vision(writer: GGUFWriter, model: Any, model_dir: Path) -> None:
    config = model.config.vision_config
    processor = CLIPImageProcessor()
    if any((model_dir / f"{name}_config.json").exists() for name in ("preprocessor", "processor")):
        processor = CLIPImageProcessor.from_pretrained(model_dir, local_files_only=True)
    writer.add_uint32("clip.vision.image_size", config.image_size)
    writer.add_uint32("clip.vision.patch_size", config.patch_size)
    _add_tower(writer, "clip.vision", config, model.visual_projection)
    writer.add_array("clip.vision.image_mean", list(processor.image_mean))
    writer.add_array("clip.vision.image_std", list(processor.image_std))


def _add_tower(writer: GGUFWriter, key: str, config: Any, projection: Any) -> None:
    """Add what both towers tell of themselves, in the same order."""
    writer.add_uint32(f"{key}.embedding_length", config.hidden_size)
    writer.add_uint32(f"{key}.feed_forward_length", config.intermediate_size)
    writer.add_uint32(f"{key}.projection_dim", projection.out_features)
    writer.add_uint32(f"{key}.attention.head_count", config.num_attention_heads)
    writer.add_float32(f"{key}.attention.layer_norm_epsilon", config.layer_norm_eps)
    writer.add_uint32(f"{key}.block_count", config.num_hidden_layers)


def _cast(name: str, array: NDArray[np.float32], outtype: str) -> NDArray[Any]:
    """Return f16 for the patch convolution, the file's type for matrices, and f32 for all the rest."""
    is_matrix = array.ndim == 2 and name.endswith(".weight")
    return array.astype(np.float16 if array.ndim == 4 or (is_matrix and outtype == "f16") else np.float32)


if __name__ == "__main__":
    convert_with_torch(Path(sys.argv[1]), Path(sys.argv[2]))
