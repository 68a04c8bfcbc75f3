"""The torch reference: convert a CLIP checkpoint as everybody did, with the whole model in memory.

transformers loads the model in float32, every tensor is renamed and cast with numpy, and GGUFWriter gets them all at
once. Nothing here comes from ``clipgguf``, so that equal bytes mean something: the configuration and its defaults, the
tensors and their order are transformers', and the names follow a rule of their own.

Where a tower's ``projection_dim`` in config.json contradicts the projection's rows (LAION's H and bigG configs), the
rows are written.

    python -m benchmarks.reference MODEL_DIR OUT_DIR [--text-only | --vision-only] [--outtype f16|f32]

Needs torch, transformers, pillow and gguf: ``pip install -e .[reference]``.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter, LlamaFileType
from numpy.typing import NDArray
from transformers import CLIPImageProcessor, CLIPModel

FILE_TYPES = {"f16": LlamaFileType.MOSTLY_F16, "f32": LlamaFileType.ALL_F32}

# What becomes of each dotted part of a tensor's name; None: it vanishes. Numbers stay as they are.
PARTS: Mapping[str, str | None] = {
    "text_model": "t",
    "vision_model": "v",
    "text_projection": "text_projection",
    "visual_projection": "visual_projection",
    "embeddings": None,
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "patch_embedding": "patch_embd",
    "class_embedding": "class_embd",
    "encoder": None,
    "layers": "blk",
    "self_attn": None,
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "out_proj": "attn_out",
    "mlp": None,
    "fc1": "ffn_down",  # Swapped with ffn_up, and every reader counts on it.
    "fc2": "ffn_up",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "pre_layrnorm": "pre_ln",
    "post_layernorm": "post_ln",
    "final_layer_norm": "post_ln",
    "weight": "weight",
    "bias": "bias",
}
NEVER_WRITTEN = {"logit_scale"}
TEXT_PARTS = {"text_model", "text_projection"}


def convert_with_torch(
    model_dir: Path, out_dir: Path, *, text_only: bool = False, vision_only: bool = False, outtype: str = "f16"
) -> Path:
    """Convert a Hugging Face CLIP directory with torch, and return the path of the finished file in ``out_dir``.

    ``out_dir`` is made if missing; ``outtype`` is "f16" or "f32". A float64 checkpoint is rounded to float32 on the
    way, as everything is that transformers loads in float32.
    Raises ValueError when both towers are excluded, when the model's tensors are not exactly those that transformers
    expects, or for an unknown ``outtype``; KeyError for a tensor that no rule names; and what transformers raises.
    """
    if text_only and vision_only:
        raise ValueError("text_only and vision_only exclude each other")
    if outtype not in FILE_TYPES:
        raise ValueError(f"outtype is {outtype!r}, should be one of {', '.join(FILE_TYPES)}")
    model = _load(model_dir)
    prefix, description = "", "two-tower CLIP model"
    if text_only:
        prefix, description = "text-", "text-only CLIP model"
    if vision_only:
        prefix, description = "vision-", "vision-only CLIP model"
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / f"{prefix}model-{outtype}.gguf"
    writer = GGUFWriter(path, arch="clip")
    writer.add_bool("clip.has_text_encoder", not vision_only)
    writer.add_bool("clip.has_vision_encoder", not text_only)
    writer.add_bool("clip.has_llava_projector", False)
    writer.add_file_type(FILE_TYPES[outtype])
    writer.add_name(_read_json(model_dir / "config.json").get("_name_or_path", model_dir.absolute().name))
    writer.add_description(description)
    if not vision_only:
        _add_text(writer, model, _read_json(model_dir / "vocab.json"))
    if not text_only:
        _add_vision(writer, model, _image_processor(model_dir))
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
    parts = (part if part.isdigit() else PARTS[part] for part in name.split("."))
    return ".".join(part for part in parts if part is not None)


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


def _image_processor(model_dir: Path) -> Any:
    if (model_dir / "preprocessor_config.json").exists() or (model_dir / "processor_config.json").exists():
        return CLIPImageProcessor.from_pretrained(model_dir, local_files_only=True)
    return CLIPImageProcessor()


def _add_text(writer: GGUFWriter, model: Any, vocabulary: Mapping[str, int]) -> None:
    config = model.config.text_config
    writer.add_uint32("clip.text.context_length", config.max_position_embeddings)
    _add_tower(writer, "clip.text", config, model.text_projection)
    writer.add_token_list(sorted(vocabulary, key=lambda token: vocabulary[token]))


def _add_vision(writer: GGUFWriter, model: Any, processor: Any) -> None:
    config = model.config.vision_config
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
    if array.ndim == 4 or (is_matrix and outtype == "f16"):
        return array.astype(np.float16)
    return array.astype(np.float32)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the converter from the command line and print the path of the finished file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reference", description="Convert with torch.")
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    towers = parser.add_mutually_exclusive_group()
    towers.add_argument("--text-only", action="store_true")
    towers.add_argument("--vision-only", action="store_true")
    parser.add_argument("--outtype", choices=tuple(FILE_TYPES), default="f16")
    print(convert_with_torch(**vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
