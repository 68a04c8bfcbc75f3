"""LLaVA: what no reader can run is refused, and said why."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipgguf import ClipGGUFError, Options, convert
from tests.clip_checkpoints import write_clip
from tests.json_files import write_json
from tests.llava_checkpoints import Llava, write_hf, write_original, write_projector
from tests.mmproj_files import with_config
from tests.weights import tensor_values, write_file

LLAVA = Llava()


VIP = {"multi_modal_projector.projector_layernorm.weight": np.ones(48, np.float32)}
PHI = {"model.vision_embed_tokens.img_projection.0.weight": np.ones((4, 4), np.float32)}

REFUSED: dict[str, tuple[Callable[[Path], tuple[Path, dict[str, Any]]], list[str]]] = {
    **{
        kind: (lambda d, k=kind: (write_hf(d / "m", replace(LLAVA, projector=k)), {}), words)  # type: ignore[misc]
        for kind, words in (
            ("linear", ["single linear layer", "crash"]),
            ("mlp1x", ["single linear layer"]),
            ("mlp without biases", ["no biases", "crash"]),
        )
    },
    "mlp3x": (
        lambda d: (write_original(d / "m", replace(LLAVA, projector="mlp3x"), tower="folder"), {}),
        ["3 linear layers", "only two"],
    ),
    "several feature layers": (
        lambda d: (write_hf(d / "m", replace(LLAVA, feature_layer=[-2, -1])), {}),
        ["config.json", "[-2, -1]", "2 layers side by side are 96", "the projector takes 48"],
    ),
    "VIP-LLaVA": (
        lambda d: (write_hf(d / "m", replace(LLAVA, feature_layer=[-2, -1], layers=2, projector="VIP-LLaVA")), {}),
        ["the projector is VIP-LLaVA's", "several layers"],
    ),
    "VIP-LLaVA's projector": (
        lambda d: (write_clip(d / "m", LLAVA.clip), {"llava_projector": extra_projector(d / "p.safetensors", VIP)}),
        ["p.safetensors", "VIP-LLaVA"],
    ),
    "Phi-3's projector": (
        lambda d: (write_clip(d / "m", LLAVA.clip), {"llava_projector": extra_projector(d / "p.safetensors", PHI)}),
        ["img_projection", "Phi-3"],
    ),
    "a class token that is kept": (
        lambda d: (write_hf(d / "m", with_config(LLAVA, vision_feature_select_strategy="full")), {}),
        ["class token", "'full'"],
    ),
    "a class token that is kept, whatever the layer": (
        lambda d: (write_hf(d / "m", with_config(LLAVA, vision_feature_select_strategy="full")), {"feature_layer": -2}),
        ["class token", "'full'"],
    ),
    "no such layer": (lambda d: (write_hf(d / "m", LLAVA), {"feature_layer": -5}), ["--feature-layer is -5", "-4"]),
    "layer zero": (lambda d: (write_hf(d / "m", replace(LLAVA, feature_layer=0)), {}), ["vision_feature_layer is 0"]),
    "a layer that is no number": (
        lambda d: (write_hf(d / "m", with_config(LLAVA, vision_feature_layer="last")), {}),
        ["vision_feature_layer is 'last'"],
    ),
    "the tower is elsewhere": (
        lambda d: (write_original(d / "m", LLAVA), {}),
        ["no vision tower", "'openai/clip-vit-large-patch14-336'", "--vision-tower"],
    ),
    "a known tower that is another": (
        lambda d: (write_original(d / "m", LLAVA, tower="inside"), {}),
        ["'openai/clip-vit-large-patch14-336'", "hidden_size 48 instead of 1024", "--vision-config"],
    ),
    "an unknown tower": (
        lambda d: (write_original(d / "m", LLAVA, tower="inside", vision_tower="me/vit"), {}),
        ["'me/vit'", "heads", "--vision-config"],
    ),
    "a tower directory without a tower": (
        lambda d: (write_original(d / "m", LLAVA), {"vision_tower": write_original(d / "n", LLAVA)}),
        ["/n", "has no vision tower"],
    ),
    "a tower directory that is none": (
        lambda d: (write_original(d / "m", LLAVA), {"vision_tower": d / "nowhere"}),
        ["nowhere", "no directory"],
    ),
    "a grid that LDP does not run on": (
        lambda d: (write_original(d / "m", Llava(projector="ldpv2"), tower="folder"), {}),
        ["ldpv2", "24 x 24", "4 x 4"],
    ),
    "a projector of another tower": (
        lambda d: (
            write_clip(d / "m", LLAVA.clip),
            {"llava_projector": write_projector(d / "p.bin", Llava(vision=replace(LLAVA.vision, hidden_size=64)))},
        ),
        ["p.bin", "'model.mm_projector.0.weight'", "(32, 64)", "(any, 48)"],
    ),
    **{
        f"a projector of no {what}": (
            lambda d, s=(hidden, embedding): (  # type: ignore[misc]
                write_clip(d / "m", LLAVA.clip),
                {
                    "llava_projector": extra_projector(
                        d / "p.safetensors",
                        {
                            "model.mm_projector.0.weight": np.ones((s[0], 48), np.float32),
                            "model.mm_projector.0.bias": np.ones(s[0], np.float32),
                            "model.mm_projector.2.weight": np.ones(s[::-1], np.float32),
                            "model.mm_projector.2.bias": np.ones(s[1], np.float32),
                        },
                    )
                },
            ),
            words,
        )
        for what, hidden, embedding, words in (
            ("width", 0, 32, ["p.safetensors", "mm_projector.0.weight'", "(0, 48)", "no axis should be of length 0"]),
            ("embedding", 32, 0, ["p.safetensors", "mm_projector.2.weight'", "(0, 32)"]),
        )
    },
    "a newline of nothing": (
        lambda d: (
            write_clip(d / "m", LLAVA.clip),
            {"llava_projector": extra_projector(d / "p.safetensors", {"image_newline": np.ones(0, np.float32)})},
        ),
        ["p.safetensors", "'image_newline'", "(0)"],
    ),
    "another kind than asked for": (
        lambda d: (write_hf(d / "m", LLAVA), {"projector_type": "ldpv2"}),
        ["as 'ldpv2'", "lacks", "'peg.peg.0.weight'"],
    ),
    "a projector file that is missing": (
        lambda d: (write_clip(d / "m", LLAVA.clip), {"llava_projector": d / "none.bin"}),
        ["none.bin"],
    ),
    "a projector file with other tensors": (
        lambda d: (
            write_clip(d / "m", LLAVA.clip),
            {"llava_projector": extra_projector(d / "p.bin", {"other": np.ones(3, np.float32)})},
        ),
        ["p.bin", "'other'", "unknown"],
    ),
    "a tower of another family": (
        lambda d: (write_hf(d / "m", with_config(LLAVA, vision_config={"model_type": "dinov2"})), {}),
        ["vision_config", "'dinov2'"],
    ),
    "a checkpoint with something more": (
        lambda d: (with_tensor(write_hf(d / "m", LLAVA), "model.resampler.weight"), {}),
        ["'model.resampler.weight'", "unknown"],
    ),
    "one tower of an mmproj": (
        lambda d: (write_hf(d / "m", LLAVA), {"vision_only": True}),
        ["LLaVA checkpoint", "--vision-only"],
    ),
}  # fmt: skip


def extra_projector(path: Path, extra: dict[str, Any]) -> Path:
    own = {name: tensor_values(name, shape) for name, shape in LLAVA.projector_shapes().items()}
    write_file(path, {**own, **extra})
    return path


def with_tensor(model: Path, name: str) -> Path:
    """Add a tensor to a model, in a shard of its own."""
    write_file(model / "more.safetensors", {name: np.ones(3, np.float32)})
    header = (model / "model.safetensors").read_bytes()
    names = [n for n in json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")]) if n != "__metadata__"]
    weight_map = {**dict.fromkeys(names, "model.safetensors"), name: "more.safetensors"}
    write_json(model / "model.safetensors.index.json", {"weight_map": weight_map})
    return model


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_reader_can_run_is_refused(case: str, tmp_path: Path) -> None:
    make, words = REFUSED[case]
    model, options = make(tmp_path)
    with pytest.raises(ClipGGUFError) as caught:
        convert(model, tmp_path / "out", options=Options(**options))
    problem, *others = caught.value.problems
    assert not others or case.startswith("a projector of no ")
    assert all(word in problem for word in words), problem
    assert not (tmp_path / "out").exists()
