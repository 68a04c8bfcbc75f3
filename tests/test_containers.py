"""Where weights are: files of every name, shards, variants, caches; which comes first, and which is refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipgguf import Options, convert
from tests.checkpoints import TINY
from tests.clip_checkpoints import (
    tokens,
    write_clip,
    write_pipeline,
    write_tower,
)
from tests.conftest import Run
from tests.gguf_reading import tensors, value
from tests.layouts import write_cache
from tests.open_clip_checkpoints import write_open_clip
from tests.refusals import refused
from tests.siglip_checkpoints import write_siglip_llava
from tests.weights import arrays_of, write_file, write_weights

# ---- containers ------------------------------------------------------------------------------------------------------

CONTAINERS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def write_container(directory: Path, container: str, **options: Any) -> None:
    if container.startswith("open_clip"):
        write_open_clip(directory, suffix=Path(container).suffix, **options)
    else:
        suffix = ".safetensors" if "safetensors" in container else ".bin"
        write_weights(
            directory, arrays_of(TINY.shapes()), suffix=suffix, shards=2 if "index" in container else 1, **options
        )


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_in_their_order_of_preference(container: str, tmp_path: Path) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny")).path.read_bytes()
    model = write_clip(tmp_path / "other" / "tiny")
    (model / "model.safetensors").unlink()
    # As in the repositories that have both, OpenCLIP's config stands beside transformers'.
    write_container(model, container)
    write_open_clip(tmp_path / "oc")
    (tmp_path / "oc" / "open_clip_config.json").replace(model / "open_clip_config.json")
    for other in CONTAINERS[CONTAINERS.index(container) + 1 :]:
        (model / other).write_bytes(b"not to be opened")
    assert convert(model).path.read_bytes() == expected


def test_no_weights_at_all(tmp_path: Path) -> None:
    model = write_clip(tmp_path / "m")
    (model / "model.safetensors").rename(model / "other.safetensors")
    problem = refused(model)
    assert all(name in problem for name in CONTAINERS)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "my-weights.safetensors", "my.fp16.bin"])
def test_a_file_as_model(name: str, tmp_path: Path) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny")).path
    model = write_clip(tmp_path / "other" / "tiny")
    (model / "model.safetensors").write_bytes(b"not to be opened")
    write_file(model / name, arrays_of(TINY.shapes()))
    result = convert(model / name)
    assert result.path == model / "model-f16.gguf"
    assert result.path.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("has_both_configs", [False, True])
def test_a_file_of_open_clip_as_model(has_both_configs: bool, name: str, tmp_path: Path) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny")).path
    model = tmp_path / "other" / "tiny"
    if has_both_configs:
        write_clip(model)
    write_open_clip(model, suffix=Path(name).suffix)
    assert convert(model / name).path.read_bytes() == expected.read_bytes()


def test_a_file_as_model_on_the_command_line(tmp_path: Path, run: Run) -> None:
    model = write_clip(tmp_path / "m", suffix=".bin")
    result = run(model / "pytorch_model.bin", "-o", "out")
    assert (result.returncode, result.stdout) == (0, f"{Path('out', 'model-f16.gguf')}\n")
    result = run(model / "nothing.bin")
    assert (result.returncode, result.stdout) == (1, "")
    assert "nothing.bin" in result.stderr


def test_a_file_as_model_without_config(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m" / "model.safetensors", arrays_of(TINY.shapes()))
    assert str(tmp_path / "m" / "config.json") in refused(path)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_variant(suffix: str, shards: int, tmp_path: Path) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny", dtype="F16", suffix=suffix)).path
    model = write_clip(tmp_path / "other" / "tiny", suffix=suffix)
    full = convert(model, tmp_path / "full.gguf").path.read_bytes()
    write_weights(model, arrays_of(TINY.shapes()), dtype="F16", suffix=suffix, shards=shards, variant="fp16")
    assert convert(model, options=Options(variant="fp16")).path.read_bytes() == expected.read_bytes()
    # Without being asked for, it is not taken.
    assert convert(model).path.read_bytes() == full


def test_variant_alone(tmp_path: Path, run: Run) -> None:
    model = write_clip(tmp_path / "m", dtype="F16", variant="fp16")
    result = run(model, "--variant", "fp16", "-o", "out")
    assert (result.returncode, result.stdout) == (0, f"{Path('out', 'model-f16.gguf')}\n")
    assert "model.fp16.safetensors" in result.stderr
    assert "F16" in result.stderr
    result = run(model)
    assert result.returncode == 1
    assert "model.safetensors" in result.stderr


@pytest.mark.parametrize("variant", ["é", "non_ema", "日本"])
def test_variant_that_is_no_ascii_word(variant: str, tmp_path: Path, run: Run) -> None:
    expected = convert(write_clip(tmp_path / "m", dtype="F16"), tmp_path / "x.gguf").path.read_bytes()
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / f"model.{variant}.safetensors")
    assert convert(tmp_path / "m", tmp_path / "y.gguf", options=Options(variant=variant)).path.read_bytes() == expected
    if "_" not in variant:
        result = run(tmp_path / "m", "--variant", variant, "-o", "z.gguf")
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("variant", ["", "a/b", "..", "a\0b", "a\\b", "\udce9", "fp16.x"])
def test_variant_that_can_be_none(variant: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="variant"):
        convert(write_clip(tmp_path / "m"), options=Options(variant=variant))


def test_variant_of_open_clip_or_a_tower(tmp_path: Path) -> None:
    expected = convert(write_clip(tmp_path / "hf" / "tiny", dtype="F16")).path
    path = convert(
        write_open_clip(tmp_path / "oc" / "tiny", dtype="F16", variant="fp16"), options=Options(variant="fp16")
    ).path
    assert path.read_bytes() == expected.read_bytes()
    write_pipeline(tmp_path / "sd", dtype="F16", variant="fp16")
    assert convert(tmp_path / "sd" / "text_encoder", options=Options(variant="fp16")).tensors == 2 + 2 * 16 + 2


@pytest.mark.parametrize("write", [write_clip, write_open_clip])
def test_variant_that_is_not_there(write: Callable[..., Path], tmp_path: Path, run: Run) -> None:
    model = write(tmp_path / "m")
    problem = refused(model, variant="bf16")
    assert "model.bf16.safetensors" in problem
    assert str(model) in problem
    assert run(model, "--variant", "bf16").returncode == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows wants a privilege for symbolic links")
@pytest.mark.parametrize(
    "write",
    [
        write_clip,
        lambda d: write_clip(d, shards=3),
        lambda d: write_clip(d, suffix=".bin"),
        write_open_clip,
        lambda d: write_tower(d, "vision", projection=True),
        write_siglip_llava,
    ],
    ids=["safetensors", "shards", "bin", "OpenCLIP", "tower", "LLaVA"],
)
def test_snapshot_of_a_hugging_face_cache(write: Callable[[Path], Path], tmp_path: Path) -> None:
    expected = tensors(convert(write(tmp_path / "m"), tmp_path / "x.gguf").path)
    snapshot = write_cache(tmp_path / "hub", tmp_path / "m")
    assert any(path.is_symlink() for path in snapshot.iterdir())
    assert tensors(convert(snapshot, tmp_path / "y.gguf").path) == expected


@pytest.mark.skipif(os.name == "nt", reason="Windows wants a privilege for symbolic links")
def test_pipeline_in_a_hugging_face_cache(tmp_path: Path) -> None:
    snapshot = write_cache(tmp_path / "hub", write_pipeline(tmp_path / "sdxl"))
    path = convert(snapshot / "text_encoder_2", tmp_path / "x.gguf").path
    assert value(path, "tokenizer.ggml.tokens") == tokens(99, "two")
    # The weights by their link, whose target is called otherwise and lies in another directory.
    path = convert(snapshot / "text_encoder_2" / "model.safetensors", tmp_path / "y.gguf").path
    assert value(path, "tokenizer.ggml.tokens") == tokens(99, "two")
