"""Quantized checkpoints: what is wanted decides, and not what config.json says of the whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipgguf import ConfigError, Options, convert, plan
from tests.clip_checkpoints import write_clip, write_tower
from tests.json_files import edit_json
from tests.llava_checkpoints import Llava, write_hf, write_original, write_projector
from tests.weights import safetensors_header


def problem(model: Path, **options: Any) -> str:
    """Return the one line that refuses a model."""
    with pytest.raises(ConfigError) as caught:
        plan(model, options=Options(**options))
    (line,) = caught.value.problems
    return line


def quantized(model: Path, method: str, part: str = "model.layers.0.") -> Path:
    """Write the config of a quantized model, and of all matrices with ``part`` in their names what AWQ stores."""
    edit_json(model / "config.json", lambda config: config.update(quantization_config={"quant_method": method}))
    path = model / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    old, header, end = json.loads(content[8 : 8 + length]), {}, 0
    for name, info in old.items():
        if name == "__metadata__":
            continue
        begin, stop = info["data_offsets"]
        if part in name and name.endswith(".weight"):
            name, info = name.replace(".weight", ".qweight"), {"dtype": "I32", "shape": [(stop - begin) // 4]}
        header[name] = {**info, "data_offsets": [begin, stop]}
        end = max(end, stop)
    path.write_bytes(safetensors_header(header) + content[8 + length :])
    return model


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes"])
def test_quantized_language_model(method: str, tmp_path: Path) -> None:
    write: Callable[[Path], Path]
    for write in (lambda d: write_hf(d, Llava()), lambda d: write_original(d, Llava(), tower="folder")):
        expected = convert(write(tmp_path / "a" / "m"), tmp_path / "x.gguf").path.read_bytes()
        model = quantized(write(tmp_path / "b" / "m"), method)
        assert b"qweight" in (model / "model.safetensors").read_bytes()
        assert convert(model, tmp_path / "y.gguf").path.read_bytes() == expected


@pytest.mark.parametrize("part", ["vision_model.encoder.layers.0.mlp", "multi_modal_projector.linear_1"])
def test_quantized_tower_or_projector(part: str, tmp_path: Path) -> None:
    model = quantized(write_hf(tmp_path / "m", Llava()), "awq", part)
    line = problem(model)
    assert f"{model / 'config.json'}: the checkpoint is quantized (awq; '" in line
    assert line.endswith("is of type I32), supported are weights in F64, F32, F16, BF16")


def test_quantized_tower_that_is_not_used(tmp_path: Path) -> None:
    llava = Llava()
    expected = convert(write_hf(tmp_path / "a" / "m", llava), tmp_path / "x.gguf").path.read_bytes()
    model = quantized(write_hf(tmp_path / "b" / "m", llava), "awq", "vision_model.encoder.layers.")
    tower = write_tower(tmp_path / "tower", "vision", llava.clip)
    assert convert(model, tmp_path / "y.gguf", options=Options(vision_tower=tower)).path.read_bytes() == expected


@pytest.mark.parametrize("where", ["model", "elsewhere"])
def test_quantized_tower_of_a_projector_from_elsewhere(where: str, tmp_path: Path) -> None:
    llava = Llava()
    if where == "model":
        tower = quantized(write_clip(tmp_path / "m", llava.clip), "gptq", "vision_model.encoder.layers.")
        line = problem(tower, llava_projector=write_projector(tmp_path / "p.bin", llava))
    else:
        tower = quantized(write_tower(tmp_path / "t", "vision", llava.clip), "gptq", "vision_model.encoder.layers.")
        line = problem(write_original(tmp_path / "m", llava), vision_tower=tower)
    assert f"{tower / 'config.json'}: the checkpoint is quantized (gptq; 'vision_model.encoder.layers.0." in line
