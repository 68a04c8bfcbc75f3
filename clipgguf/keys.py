"""The metadata keys of GGUF files of architecture ``clip``: each one's short name, full name and type, written once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType

from clipgguf.checkpoint.gguf_file import MetadataItem

_BOOL, _STRING = GGUFValueType.BOOL, GGUFValueType.STRING
_UINT32, _INT32, _FLOAT32 = GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.FLOAT32


@dataclass(frozen=True, slots=True)
class Key:
    """A metadata key; ``value_type`` is that of the elements where the value is an array."""

    key: str
    value_type: GGUFValueType
    is_array: bool = False

    @property
    def type_name(self) -> str:
        """The type as messages call it: UINT32, ARRAY of FLOAT32."""
        return self.item([] if self.is_array else None).type_name

    def item(self, value: Any) -> MetadataItem:
        """Return the key with a value."""
        return MetadataItem(self.key, self.value_type, value)

    def read(self, items: Mapping[str, MetadataItem]) -> Any:
        """Return the value in a file's metadata by key (of an array a tuple), or None: missing, or of another type."""
        item = items.get(self.key)
        if item is None or item.type_name != self.type_name:
            return None
        return tuple(item.value) if self.is_array else item.value


def _tower(tower: str) -> dict[str, Key]:
    """Return the keys that every tower has, vision, text or audio."""
    return {
        f"{tower}.width": Key(f"clip.{tower}.embedding_length", _UINT32),
        f"{tower}.ffn": Key(f"clip.{tower}.feed_forward_length", _UINT32),
        f"{tower}.projection": Key(f"clip.{tower}.projection_dim", _UINT32),
        f"{tower}.heads": Key(f"clip.{tower}.attention.head_count", _UINT32),
        f"{tower}.epsilon": Key(f"clip.{tower}.attention.layer_norm_epsilon", _FLOAT32),
        f"{tower}.blocks": Key(f"clip.{tower}.block_count", _UINT32),
    }


# In the order of a file; named as in llama.cpp's ``tools/mtmd/clip-impl.h`` (``KEY_*``) and clip.cpp's ``clip.cpp``.
KEYS: Mapping[str, Key] = {
    "type": Key("general.type", _STRING),
    "has_text": Key("clip.has_text_encoder", _BOOL),
    "has_vision": Key("clip.has_vision_encoder", _BOOL),
    "has_audio": Key("clip.has_audio_encoder", _BOOL),
    "has_llava": Key("clip.has_llava_projector", _BOOL),
    "file_type": Key("general.file_type", _UINT32),
    "quantization_version": Key("general.quantization_version", _UINT32),
    "name": Key("general.name", _STRING),
    "description": Key("general.description", _STRING),
    "text.positions": Key("clip.text.context_length", _UINT32),
    **_tower("text"),
    "text.tokens": Key("tokenizer.ggml.tokens", _STRING, is_array=True),
    "vision.image": Key("clip.vision.image_size", _UINT32),
    "vision.patch": Key("clip.vision.patch_size", _UINT32),
    **_tower("vision"),
    "vision.mean": Key("clip.vision.image_mean", _FLOAT32, is_array=True),
    "vision.std": Key("clip.vision.image_std", _FLOAT32, is_array=True),
    "gelu": Key("clip.use_gelu", _BOOL),
    "silu": Key("clip.use_silu", _BOOL),
    "projector": Key("clip.projector_type", _STRING),
    "vision.projector": Key("clip.vision.projector_type", _STRING),
    "audio.projector": Key("clip.audio.projector_type", _STRING),
    "vision.feature_layer": Key("clip.vision.feature_layer", _INT32, is_array=True),
    "vision.pinpoints": Key("clip.vision.image_grid_pinpoints", _INT32, is_array=True),
    "vision.merge_type": Key("clip.vision.mm_patch_merge_type", _STRING),
    "vision.scale": Key("clip.vision.projector.scale_factor", _UINT32),
    "vision.merge": Key("clip.vision.spatial_merge_size", _UINT32),
    "vision.query_side": Key("clip.vision.projector.query_side", _UINT32),
    "vision.window_side": Key("clip.vision.projector.window_side", _UINT32),
    "vision.spatial_offsets": Key("clip.vision.projector.spatial_offsets", _INT32, is_array=True),
    "vision.kv_heads": Key("clip.vision.attention.head_count_kv", _UINT32),
    "vision.window_pattern": Key("clip.vision.n_wa_pattern", _UINT32),
    "vision.window": Key("clip.vision.window_size", _UINT32),
    "vision.whole_blocks": Key("clip.vision.wa_layer_indexes", _INT32, is_array=True),
    "vision.window_modes": Key("clip.vision.wa_pattern_mode", _INT32, is_array=True),
    "vision.experts": Key("clip.vision.expert_count_per_layer", _INT32, is_array=True),
    "vision.experts_used": Key("clip.vision.expert_used_count", _UINT32),
    "vision.is_deepstack": Key("clip.vision.is_deepstack_layers", _BOOL, is_array=True),
    "vision.swiglu_clamp": Key("clip.vision.swiglu_clamp", _FLOAT32),
    "vision.min_pixels": Key("clip.vision.image_min_pixels", _UINT32),
    "vision.max_pixels": Key("clip.vision.image_max_pixels", _UINT32),
    "vision.preproc_image": Key("clip.vision.preproc_image_size", _UINT32),
    "vision.min_tiles": Key("clip.vision.preproc_min_tiles", _UINT32),
    "vision.max_tiles": Key("clip.vision.preproc_max_tiles", _UINT32),
    "vision.sam_blocks": Key("clip.vision.sam.block_count", _UINT32),
    "vision.sam_width": Key("clip.vision.sam.embedding_length", _UINT32),
    "vision.sam_heads": Key("clip.vision.sam.head_count", _UINT32),
    # Kimi-K2.5's grid of positions, which no reader looks up.
    "vision.pos_height": Key("vision.pos_emb_height", _UINT32),
    "vision.pos_width": Key("vision.pos_emb_width", _UINT32),
    "vision.pos_time": Key("vision.pos_emb_time", _UINT32),
    **_tower("audio"),
    "audio.mel_bins": Key("clip.audio.num_mel_bins", _UINT32),
    "audio.stack": Key("clip.audio.projector.stack_factor", _UINT32),
    "audio.feature_layer": Key("clip.audio.feature_layer", _INT32, is_array=True),
    "audio.subsampling": Key("clip.audio.subsampling_factor", _UINT32),
    "audio.conv_kernel": Key("clip.audio.conv_kernel_size", _UINT32),
    "audio.context": Key("clip.audio.chunk_size", _UINT32),
    "audio.max_distance": Key("clip.audio.max_pos_emb", _UINT32),
    "audio.query_window": Key("clip.audio.projector.window_size", _UINT32),
    "audio.query_rate": Key("clip.audio.projector.downsample_rate", _UINT32),
    "audio.query_heads": Key("clip.audio.projector.head_count", _UINT32),
    "audio.codebooks": Key("clip.audio.rvq.num_quantizers", _UINT32),
    "audio.codebook_sizes": Key("clip.audio.rvq.codebook_size", _INT32, is_array=True),
    "audio.window_modes": Key("clip.audio.wa_pattern_mode", _INT32, is_array=True),
    "audio.window": Key("clip.audio.window_size", _UINT32),
    "audio.local_blocks": Key("clip.audio.local_block_count", _UINT32),
    "audio.group": Key("clip.audio.local_group_size", _UINT32),
    # What speaks, of models whose ears are for voices.
    "has_gen_audio": Key("clip.has_gen_audio_encoder", _BOOL),
    "audio.gen_projector": Key("clip.gen.audio.projector_type", _STRING),
    "audio.gen_projection": Key("clip.gen.audio.projection_dim", _UINT32),
    "audio.gen_width": Key("clip.gen.audio.embedding_length", _UINT32),
    "audio.gen_ffn": Key("clip.gen.audio.feed_forward_length", _UINT32),
    "audio.gen_blocks": Key("clip.gen.audio.block_count", _UINT32),
    "audio.gen_heads": Key("clip.gen.audio.attention.head_count", _UINT32),
    "audio.gen_kv_heads": Key("clip.gen.audio.attention.head_count_kv", _UINT32),
    "audio.gen_epsilon": Key("clip.gen.audio.attention.layer_norm_epsilon", _FLOAT32),
    "rope_base": Key("clip.rope.freq_base", _FLOAT32),
    "has_minicpmv": Key("clip.has_minicpmv_projector", _BOOL),
    "minicpmv_version": Key("clip.minicpmv_version", _INT32),
    "minicpmv_queries": Key("clip.minicpmv_query_num", _UINT32),
}
