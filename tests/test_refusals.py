"""What is refused, and by which name: other models, quantized ones, tensors that are unknown or of a wrong shape."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipgguf import Options, convert
from tests.checkpoints import TINY
from tests.clip_checkpoints import (
    write_clip,
    write_tower,
)
from tests.conftest import Run
from tests.gguf_reading import tensors
from tests.json_files import change, edit_json, write_json
from tests.open_clip_checkpoints import open_clip_arrays, write_open_clip
from tests.refusals import refused
from tests.siglip_checkpoints import write_siglip, write_siglip_tower
from tests.weights import write_file

# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("glmasr", "has rotary positions"),
        ("musicflamingo", "rotates the features by their times"),
        ("pocket_tts", "has other names"),
    ],
)
def test_what_looks_like_a_family_and_is_not_computed(model_type: str, why: str, tmp_path: Path) -> None:
    model = write_clip(tmp_path / "m")
    write_json(model / "config.json", {"model_type": model_type})
    problem = refused(model)
    assert f"{model / 'config.json'}: is of model_type {model_type!r}, which is not supported: " in problem
    assert why in problem


@pytest.mark.parametrize("model_type", ["t5", "bert", "chinese_clip", "clipseg", "siglip2_vision_model", None, "", 5])
def test_other_model_types(model_type: Any, tmp_path: Path, run: Run) -> None:
    model = write_clip(tmp_path / "m")
    write_json(model / "config.json", {"model_type": model_type, "hidden_size": 8, "architectures": ["Other"]})
    problem = refused(model)
    assert str(model / "config.json") in problem
    assert repr(model_type) in problem or model_type is None
    assert problem.endswith("; `clipgguf families` lists what is supported")
    assert ("llama.cpp's converter does not know it either" in problem) == (model_type is not None)
    nearest = {"clipseg": "; 'clip' is;", "siglip2_vision_model": "; 'siglip_vision_model', 'clip_vision_model' are;"}
    assert nearest.get(str(model_type), "") in problem
    if model_type == "t5":
        result = run(model)
        assert (result.returncode, result.stdout) == (1, "")
        assert problem in result.stderr


@pytest.mark.parametrize("model_type", ["clip", "clip_vision_model"])
@pytest.mark.parametrize(("method", "code"), [("bitsandbytes", "U8"), ("fp8", "F8_E4M3")])
def test_quantized_checkpoints(method: str, code: str, model_type: str, tmp_path: Path) -> None:
    def dtype(name: str) -> str:
        return code if name.endswith("layers.0.mlp.fc1.weight") else "F16"

    for directory, dtypes in ((tmp_path / "q" / "m", dtype), (tmp_path / "m", "F16")):
        if model_type == "clip":
            write_clip(directory, dtype=dtypes)
        else:
            write_tower(directory, "vision", dtype=dtypes)
    edited = {"quantization_config": {"quant_method": method, "bits": 4}}
    expected = convert(tmp_path / "m").path.read_bytes()
    for directory in (tmp_path / "q" / "m", tmp_path / "m"):
        edit_json(directory / "config.json", lambda config: config.update(edited))
    problem = refused(tmp_path / "q" / "m")
    assert f"config.json: the checkpoint is quantized ({method}; '" in problem
    assert f"layers.0.mlp.fc1.weight' is of type {code})" in problem
    # What the config says is one thing, what there is another.
    assert convert(tmp_path / "m").path.read_bytes() == expected


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("write", [write_clip, write_open_clip], ids=["transformers", "OpenCLIP"])
def test_float8(write: Callable[..., Path], code: str, tmp_path: Path) -> None:
    model = write(
        tmp_path / "m", dtype=lambda name: code if name.endswith(("mlp.fc1.weight", "c_fc.weight")) else "F32"
    )
    problem = refused(model)
    assert code in problem
    assert "encoder.layers.0.mlp.fc1.weight" in problem or "resblocks.0.mlp.c_fc.weight" in problem
    assert "F16" in problem


def test_packed_integers(tmp_path: Path) -> None:
    # bitsandbytes' weights without the config that tells it.
    packed = {"vision_model.encoder.layers.0.mlp.fc1.weight": np.zeros((96, 48), np.int64)}
    model = write_clip(tmp_path / "m", extra=packed)
    problem = refused(model)
    assert "'vision_model.encoder.layers.0.mlp.fc1.weight'" in problem
    assert "I64" in problem


def test_siglip_with_both_towers(tmp_path: Path) -> None:
    problem = refused(write_siglip(tmp_path / "m"))
    assert "SigLIP" in problem
    assert "--vision-only" in problem
    assert "--text-only" not in refused(write_siglip(tmp_path / "m"))
    assert refused(tmp_path / "m", text_only=True)


EXTRA = {"vision_model.adapter.weight": np.ones((3, 3), np.float32)}
TEXT_EXTRA = {"text_model.adapter.weight": np.ones((3, 3), np.float32)}


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (lambda d: write_clip(d, extra=EXTRA), "vision_model.adapter.weight"),
        (lambda d: write_clip(d, extra=EXTRA, suffix=".bin"), "vision_model.adapter.weight"),
        (lambda d: write_tower(d, "vision", extra=EXTRA), "vision_model.adapter.weight"),
        (lambda d: write_tower(d, "vision", prefix="", extra={"adapter": np.ones(3, np.float32)}), "adapter"),
        (lambda d: write_tower(d, "text", projection=True, extra=TEXT_EXTRA), "text_model.adapter.weight"),
        (lambda d: write_open_clip(d, extra={"visual.adapter": np.ones(3, np.float32)}), "visual.adapter"),
        (
            lambda d: write_open_clip(d, extra={"visual.transformer.resblocks.0.ls_1.gamma": np.ones(48, np.float32)}),
            "visual.transformer.resblocks.0.ls_1.gamma",
        ),
        (lambda d: write_siglip_tower(d, extra=EXTRA), "vision_model.adapter.weight"),
    ],
    ids=["clip", "bin", "tower", "bare tower", "text tower", "OpenCLIP", "OpenCLIP block", "SigLIP"],
)
def test_unknown_tensors(write: Callable[[Path], Path], named: str, tmp_path: Path, run: Run) -> None:
    model = write(tmp_path / "m")
    problem = refused(model)
    assert f"'{named}'" in problem
    assert "--ignore-unknown" in problem
    result = convert(model, options=Options(ignore_unknown=True))
    (warning,) = result.warnings
    assert f"'{named}'" in warning
    assert not any("adapter" in name or "ls_1" in name for name in tensors(result.path))
    shown = run(model, "--ignore-unknown", "-o", "x.gguf")
    assert shown.returncode == 0
    assert "warning" in shown.stderr
    assert named in shown.stderr
    assert (tmp_path / "work" / "x.gguf").read_bytes() == result.path.read_bytes()


def test_all_unknown_tensors_are_listed(tmp_path: Path) -> None:
    extra = {f"other.{n}.weight": np.ones(3, np.float32) for n in range(3)}
    problem = refused(write_clip(tmp_path / "m", extra=extra))
    assert all(f"'{name}'" in problem for name in extra)


def test_ignoring_does_not_forgive_what_is_missing(tmp_path: Path) -> None:
    arrays = open_clip_arrays(TINY)
    del arrays["visual.ln_post.bias"]
    model = write_open_clip(tmp_path / "m")
    write_file(model / "open_clip_model.safetensors", arrays)
    assert "'visual.ln_post.bias'" in refused(model, ignore_unknown=True)


def test_blocks_beyond_the_configs_are_unknown(tmp_path: Path) -> None:
    for model, name in (
        (write_tower(tmp_path / "hf", "vision"), "encoder.layers.2."),
        (write_open_clip(tmp_path / "oc"), "transformer.resblocks.2."),
    ):
        if name.startswith("encoder"):
            edit_json(model / "config.json", lambda config: config.update(num_hidden_layers=2))
        else:
            edit_json(model / "open_clip_config.json", change("model_cfg", "vision_cfg", layers=2))
        problem = refused(model)
        assert name in problem
        assert "unknown" in problem


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_open_clip_matrices_of_a_wrong_shape(kind: str, tmp_path: Path) -> None:
    name = f"visual.transformer.resblocks.0.attn.in_proj_{kind}"
    for rows in (143, 147):
        shape = (rows, 48)[: 2 if kind == "weight" else 1]
        model = write_open_clip(tmp_path / f"{rows}", extra={name: np.ones(shape, np.float32)})
        problem = refused(model)
        assert name in problem, problem


@pytest.mark.parametrize("name", ["text.positional_embedding", "text_model.embeddings.position_embedding.weight"])
def test_open_clip_tensors_that_are_there_twice(name: str, tmp_path: Path) -> None:
    # Two spellings of one tensor: neither is to be dropped in silence.
    model = write_open_clip(tmp_path / "m", extra={name: np.ones((16, 32), np.float32)})
    problem = refused(model)
    assert "unknown" in problem
    assert f"'{name}'" in problem or "'positional_embedding'" in problem


def test_open_clip_projection_of_a_wrong_shape(tmp_path: Path) -> None:
    model = write_open_clip(tmp_path / "m", extra={"visual.proj": np.ones((24, 48), np.float32)})
    assert "'visual.proj'" in refused(model)
