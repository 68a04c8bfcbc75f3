"""Spellings of names that other versions of transformers have, and settings that readers take for granted."""

from pathlib import Path
from typing import Any

import pytest

from clipgguf import ConfigError, convert, plan
from tests.family_fixtures import Write, fixtures, rename
from tests.json_files import edit_json

# Other spellings of a fixture's names, as regular expressions and what takes their place: those of other versions of
# transformers, of what it saves and of what is on the hub.
SPELLINGS = {
    "exaone4_5": [[(r"^model\.visual\.", "visual.")]],
    "glm4v": [[(r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")]],
    "hunyuan_vl": [
        [
            (r"^model\.", "model.language_model."),
            (r"^vit\.", "model.vision_tower."),
            (r"\.perceive\.", ".patch_merger."),
            (r"\.proj\.0\.", ".proj_conv."),
            (r"\.proj\.2\.", ".proj_out."),
            (r"tower(\.layers\.\d+)\.input_layernorm\.", r"tower\1.layer_norm1."),
            (r"tower(\.layers\.\d+)\.post_attention_layernorm\.", r"tower\1.layer_norm2."),
            (r"\.dense_h_to_4h\.", ".fc1."),
            (r"\.dense_4h_to_h\.", ".fc2."),
        ],
    ],
    "minimax_m3": [
        [
            (r"^language_model\.model\.", "model.language_model."),
            (r"^language_model\.lm_head", "lm_head"),
            (r"^vision_tower\.vision_model\.embeddings\.patch_embedding\.", "model.vision_tower.embeddings.proj."),
            (r"^vision_tower\.vision_model\.(encoder\.)?", "model.vision_tower."),
            (r"^multi_modal_projector\.", "model.multi_modal_projector."),
            (r"^patch_merge_mlp\.", "model.multi_modal_projector.merge_"),
        ],
    ],
    "qwen2_vl": [[(r"^visual\.", "model.visual."), (r"^model\.(?!visual\.)", "model.language_model.")]],
    "kimi_k25": [
        [
            (r"^vision_tower\.patch_embed\.proj", "vision_tower.encoder.patch_embed.proj"),
            (r"^mm_projector\.pre_norm", "model.mm_projector.pre_norm"),
        ],
        [(r"^language_model.model", "model.language_model"), (r"^(mm_proj|vision_)", r"model.\1")],
        [(r"^mm_projector\.proj\.0", "mm_projector.in_proj"), (r"^mm_projector\.proj\.2", "mm_projector.out_proj")],
    ],
    "kimi_vl": [[(r"^(multi_|vision_)", r"model.\1")]],
    "lighton_ocr": [
        [("^model.vision_encoder", "vision_tower"), ("^model.vision_projection", "multi_modal_projector")],
        [("^model.language_model", "language_model.model")],
    ],
    "ling3_vl": [[(r"^model\.visual", "visual")]],
    "muse_glimmer": [[(r"^model\.", "")]],
    "pixtral": [
        [
            (r"^language_model\.model\.", "model.language_model."),
            (r"^language_model\.lm_head", "lm_head"),
            (r"^(vision_tower|multi_modal_projector)", r"model.\1"),
        ],
        [(r"^language_model\.model\.", "model.")],
    ],
}


@pytest.mark.parametrize(
    ("name", "changes"), [(name, changes) for name, spellings in SPELLINGS.items() for changes in spellings]
)
def test_other_spellings_of_the_names(
    name: str, changes: list[tuple[str, str]], written: Write, tmp_path: Path
) -> None:
    (family,) = (family for family in fixtures() if family.name == name)
    rename(family.write(tmp_path / "m"), changes)
    assert convert(tmp_path / "m", tmp_path / "b.gguf").path.read_bytes() == written(family).file.read_bytes()


@pytest.mark.parametrize(
    ("name", "part", "key", "value"),
    [
        ("kimi_k25", "vision_config", "projector_hidden_act", "relu"),
        ("kimi_k25", "vision_config", "merge_kernel_size", [2, 1]),
        ("kimi_vl", "vision_config", "merge_kernel_size", [3, 3]),
        ("ling3_vl", "vision_config", "disable_merger_proj", False),
        ("ling3_vl", "vision_config", "spatial_merge_size", 4),
        ("lighton_ocr", None, "vision_feature_layer", -2),
        ("mistral", "vision_encoder", "rope_theta", 500.0),
        ("muse_glimmer", "vision_config", "pos_emb_width", 8),
        ("muse_glimmer", None, "projector_hidden_act", "silu"),
        ("pixtral", "vision_config", "rope_parameters", {"rope_theta": 500.0}),
        ("pixtral", None, "projector_hidden_act", "silu"),
        ("pixtral--mistral3", None, "vision_feature_layer", [-1, -2]),
    ],
)
def test_what_llama_cpp_would_compute_wrongly(
    name: str, part: str | None, key: str, value: Any, tmp_path: Path
) -> None:
    (family,) = (family for family in fixtures() if family.name == name)
    model = family.write(tmp_path / "m")
    edit_json(model / family.config_name, lambda c: (c if part is None else c[part]).update({key: value}))
    with pytest.raises(ConfigError, match=key):
        plan(model)
