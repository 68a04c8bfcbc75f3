"""Families at their real sizes: checkpoints that take no disk, planned, and converted in bounded memory."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipgguf import Options, plan
from clipgguf.options import Outtype
from tests.family_models import INTERN_VIT_6B, QWEN2_5_VL_7B, FamilyModel
from tests.json_files import write_json
from tests.processes import MIB, peak_rss
from tests.weights import write_sparse_safetensors

_SO400M = {
    **{"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
    **{"patch_size": 14},
}
# What their config.json does not have, or what a family's own defaults say already, is what the published models have.
MODELS = {
    "Qwen2.5-VL-7B": QWEN2_5_VL_7B,
    "InternVL2.5-78B": INTERN_VIT_6B,
    # Adds 1 to a norm.
    "Gemma 3 4B": FamilyModel(
        "gemma3",
        {
            **{"model_type": "gemma3", "mm_tokens_per_image": 256, "text_config": {"hidden_size": 2560}},
            "vision_config": {**_SO400M, "image_size": 896},
        },
    ),
    # Takes the softplus of scales.
    "Gemma 4 E2B": FamilyModel(
        "gemma4",
        {
            **{"model_type": "gemma4", "text_config": {"hidden_size": 1536}, "audio_config": {"hidden_size": 1024}},
            "vision_config": {"use_clipped_linears": True},
        },
        {"audio.first": 128, "audio.second": 32, "audio.features": 1536},
    ),
    # Computes queries and keys in another order.
    "MiniMax-M3": FamilyModel("minimax_m3", {"model_type": "minimax_m3_vl"}, {"hidden": 6144, "hidden'": 6144}),
    # Takes queries, keys and values apart, and puts them together again in another order.
    "Kimi-K2.5": FamilyModel("kimi_k25", {"model_type": "kimi_k25"}, {"hidden": 4608}),
    # Resizes 128 x 128 positions to 32 x 32.
    "Nemotron Nano V2 VL": FamilyModel(
        "nemotron_nano_v2_vl",
        {"model_type": "NemotronH_Nano_VL_V2", "architectures": ["NemotronH_Nano_VL_V2"], "force_image_size": 512},
        {"registers": 10, "position_embd.weight": 128**2, "hidden": 20480},
    ),
    # Adds up the frames of the patches' kernel.
    "Muse Glimmer": FamilyModel("muse_glimmer", {"model_type": "muse_glimmer"}, {"hidden": 4096, "half": 48}),
    # Folds batch norms.
    "Granite Speech 3.3 2B": FamilyModel(
        "granite_speech",
        {
            **{"model_type": "granite_speech", "text_config": {"hidden_size": 2048}},
            "encoder_config": {"num_layers": 16},
            "projector_config": {"num_attention_heads": 16, "num_hidden_layers": 2},
        },
        {"inner": 2048, "letters": 42, "query_ffn": 4096},
    ),
    # Computes a table of 4,900 positions.
    "MiniCPM-V 2.6": FamilyModel(
        "minicpmv",
        {
            "model_type": "minicpmv",
            "version": 2.6,
            "hidden_size": 3584,
            "vision_config": {**_SO400M, "image_size": 980},
        },
    ),
}


def written(model: FamilyModel, directory: Path, dtype: str = "BF16") -> Path:
    """Write a model whose tensors are all zero; a whole checkpoint's header, a hole for its data."""
    directory.mkdir(parents=True)
    for name, value in model.files().items():
        write_json(directory / name, value)
    write_sparse_safetensors(directory / "model.safetensors", model.shapes(), dtype)
    return directory


def values_of(name: str) -> int:
    return sum(map(math.prod, MODELS[name].shapes().values()))


def test_the_sizes_are_real() -> None:
    # In millions of values, with the projector.
    assert {name: round(values_of(name) / 1e6) for name in MODELS} == {
        "Qwen2.5-VL-7B": 677,
        "InternVL2.5-78B": 5709,
        "Gemma 3 4B": 420,
        "Gemma 4 E2B": 476,
        "MiniMax-M3": 866,
        "Kimi-K2.5": 471,
        "Nemotron Nano V2 VL": 840,
        "Muse Glimmer": 1922,
        "Granite Speech 3.3 2B": 475,
        "MiniCPM-V 2.6": 486,
    }


@pytest.mark.slow
@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
@pytest.mark.parametrize("name", MODELS)
def test_the_plan_has_all_values(name: str, outtype: Outtype, tmp_path: Path) -> None:
    model = MODELS[name]
    made = plan(written(model, tmp_path / "m"), Options(outtype=outtype))
    values = sum(math.prod(tensor.shape) for tensor in made.tensors)
    # What is resized, added up or made is little beside the rest.
    assert values == pytest.approx(values_of(name), rel=0.05)
    assert made.bytes_in == pytest.approx(2 * values_of(name), rel=0.05)


def peak_of(model: FamilyModel, directory: Path, outtype: Outtype) -> int:
    path = written(model, directory)
    peak = peak_rss("-m", "clipgguf", path, "-o", directory / "out.gguf", "--outtype", outtype)
    (directory / "out.gguf").unlink()
    return peak


def with_blocks(model: FamilyModel, count: int) -> FamilyModel:
    """Return a model with so many blocks, all else as it is."""
    name = next(
        value.source.split("|")[0].rpartition(".")[2]
        for value in model.family.values
        if value.name.endswith(".blocks") and isinstance(value.source, str)
    )
    place = "encoder_config" if "encoder_config" in model.config else "vision_config"
    tower: dict[str, Any] = model.config.get(place, {})
    return replace(model, config={**model.config, place: {**tower, name: count}})


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_peak_memory_of_a_large_tower(outtype: Outtype, tmp_path: Path) -> None:
    model = MODELS["Qwen2.5-VL-7B"]
    assert values_of("Qwen2.5-VL-7B") * 2 > 1.3e9
    most = peak_of(model, tmp_path / "large", outtype)
    assert most <= 64 * MIB
    assert most - peak_of(with_blocks(model, 1), tmp_path / "small", outtype) <= 4 * MIB


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("Qwen2.5-VL-7B", "InternVL2.5-78B")])
def test_peak_memory_of_what_is_computed(name: str, outtype: Outtype, tmp_path: Path) -> None:
    # Of the blocks one will do: tensors are converted one after the other.
    assert peak_of(with_blocks(MODELS[name], 1), tmp_path / "m", outtype) <= 64 * MIB
