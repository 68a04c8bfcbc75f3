"""The tensors of CLIP, in the order in which a file has them: canonical (Hugging Face) name, GGUF name and shape.

The names are those that transformers' CLIPModel gives its parameters, and that clip.cpp, PowerInfer and llama.cpp
look up (``TN_*`` in llama.cpp's ``tools/mtmd/clip-impl.h``). The order is the model's own module order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from clipgguf.config import SiglipVisionConfig, TextConfig, VisionConfig

# Each rule: canonical name, GGUF name, and the shape by the names of the tower's sizes.
Rule = tuple[str, str, tuple[str, ...]]

TEXT_EMBEDDINGS: tuple[Rule, ...] = (
    ("embeddings.token_embedding.weight", "token_embd.weight", ("vocab", "width")),
    ("embeddings.position_embedding.weight", "position_embd.weight", ("positions", "width")),
)
VISION_EMBEDDINGS: tuple[Rule, ...] = (
    ("embeddings.class_embedding", "class_embd", ("width",)),
    ("embeddings.patch_embedding.weight", "patch_embd.weight", ("width", "channels", "patch", "patch")),
    ("embeddings.position_embedding.weight", "position_embd.weight", ("positions", "width")),
    ("pre_layrnorm.weight", "pre_ln.weight", ("width",)),  # "layrnorm": so it stands in every checkpoint.
    ("pre_layrnorm.bias", "pre_ln.bias", ("width",)),
)
# SigLIP has no class token and no norm before the blocks, and its patch convolution has a bias.
SIGLIP_VISION_EMBEDDINGS: tuple[Rule, ...] = (
    ("embeddings.patch_embedding.weight", "patch_embd.weight", ("width", "channels", "patch", "patch")),
    ("embeddings.patch_embedding.bias", "patch_embd.bias", ("width",)),
    ("embeddings.position_embedding.weight", "position_embd.weight", ("positions", "width")),
)
# fc1 is the projection that widens, and yet its GGUF name is ffn_down, because every reader expects it so.
BLOCK: tuple[Rule, ...] = (
    ("self_attn.k_proj.weight", "attn_k.weight", ("width", "width")),
    ("self_attn.k_proj.bias", "attn_k.bias", ("width",)),
    ("self_attn.v_proj.weight", "attn_v.weight", ("width", "width")),
    ("self_attn.v_proj.bias", "attn_v.bias", ("width",)),
    ("self_attn.q_proj.weight", "attn_q.weight", ("width", "width")),
    ("self_attn.q_proj.bias", "attn_q.bias", ("width",)),
    ("self_attn.out_proj.weight", "attn_out.weight", ("width", "width")),
    ("self_attn.out_proj.bias", "attn_out.bias", ("width",)),
    ("layer_norm1.weight", "ln1.weight", ("width",)),
    ("layer_norm1.bias", "ln1.bias", ("width",)),
    ("mlp.fc1.weight", "ffn_down.weight", ("ffn", "width")),
    ("mlp.fc1.bias", "ffn_down.bias", ("ffn",)),
    ("mlp.fc2.weight", "ffn_up.weight", ("width", "ffn")),
    ("mlp.fc2.bias", "ffn_up.bias", ("width",)),
    ("layer_norm2.weight", "ln2.weight", ("width",)),
    ("layer_norm2.bias", "ln2.bias", ("width",)),
)
TEXT_FINAL: tuple[Rule, ...] = (
    ("final_layer_norm.weight", "post_ln.weight", ("width",)),
    ("final_layer_norm.bias", "post_ln.bias", ("width",)),
)
VISION_FINAL: tuple[Rule, ...] = (
    ("post_layernorm.weight", "post_ln.weight", ("width",)),
    ("post_layernorm.bias", "post_ln.bias", ("width",)),
)

VISUAL_PROJECTION = "visual_projection.weight"
TEXT_PROJECTION = "text_projection.weight"

# What a checkpoint may hold and a file never does: the temperature of the contrastive loss, and old integer buffers.
NEVER_WRITTEN = frozenset({"logit_scale", "text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"})


@dataclass(frozen=True, slots=True)
class Tower:
    """One of CLIP's two transformers: the prefixes of its names, and the rules for its tensors."""

    canonical_prefix: str
    gguf_prefix: str
    embeddings: tuple[Rule, ...]
    final: tuple[Rule, ...]
    projection: str

    def owns(self, name: str) -> bool:
        """Return whether a canonical name belongs to this tower or its projection."""
        return name.startswith(self.canonical_prefix) or name == self.projection


TEXT = Tower("text_model.", "t.", TEXT_EMBEDDINGS, TEXT_FINAL, TEXT_PROJECTION)
VISION = Tower("vision_model.", "v.", VISION_EMBEDDINGS, VISION_FINAL, VISUAL_PROJECTION)
SIGLIP_VISION = replace(VISION, embeddings=SIGLIP_VISION_EMBEDDINGS)
# SigLIP's attention pooling, which no reader of GGUF files can run.
SIGLIP_HEAD = "vision_model.head."


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """A tensor that the model must have; an axis of ``shape`` that is None may have any length."""

    canonical_name: str
    gguf_name: str
    shape: tuple[int | None, ...]


def expected_tensors(text: TextConfig | None, vision: VisionConfig | None) -> Iterator[ExpectedTensor]:
    """Yield the tensors of the towers that are asked for, in the order of the file.

    Those of their projections are among them but for SigLIP, which has none.
    """
    if text is not None:
        sizes = {"vocab": text.vocab_size, "positions": text.max_position_embeddings}
        yield from _tower_tensors(TEXT, text, sizes)
    if vision is not None:
        sizes = {"channels": vision.num_channels, "patch": vision.patch_size, "positions": vision.positions}
        if isinstance(vision, SiglipVisionConfig):
            yield from _tower_tensors(SIGLIP_VISION, vision, sizes)
        else:
            yield from _tower_tensors(VISION, vision, sizes)
            yield ExpectedTensor(VISUAL_PROJECTION, VISUAL_PROJECTION, (None, vision.hidden_size))
    if text is not None:
        yield ExpectedTensor(TEXT_PROJECTION, TEXT_PROJECTION, (None, text.hidden_size))


def _tower_tensors(tower: Tower, config: TextConfig | VisionConfig, sizes: dict[str, int]) -> Iterator[ExpectedTensor]:
    sizes |= {"width": config.hidden_size, "ffn": config.intermediate_size}
    sections = [("", "", tower.embeddings)]
    sections += [(f"encoder.layers.{n}.", f"blk.{n}.", BLOCK) for n in range(config.num_hidden_layers)]
    sections += [("", "", tower.final)]
    for canonical, gguf, rules in sections:
        for canonical_tail, gguf_tail, shape in rules:
            yield ExpectedTensor(
                f"{tower.canonical_prefix}{canonical}{canonical_tail}",
                f"{tower.gguf_prefix}{gguf}{gguf_tail}",
                tuple(sizes[axis] for axis in shape),
            )
