"""The main job: whole files, compared with what the torch reference writes, and read by an independent reader."""

import hashlib
import json
import stat
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from clipgguf import CheckpointError, Options, convert, plan
from clipgguf.options import Outtype
from tests.checkpoints import TINY, Clip, Text, Vision, write_model
from tests.gguf_reading import read, value
from tests.golden import CASES, GOLDEN
from tests.json_files import edit_json, write_json
from tests.weights import to_dtype, values, write_safetensors


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whole_file_is_the_torch_references(case: Any, tmp_path: Path) -> None:
    model = case.write(tmp_path)
    result = convert(model, tmp_path / "out", options=Options(**case.options))
    assert (result.path.name, sha256(result.path)) == GOLDEN[case.name]


def test_the_model_that_comes_with_the_project(tmp_path: Path) -> None:
    # It is the first golden case's checkpoint, kept as a file so that nothing but clipgguf is needed to try it.
    example = Path(__file__).parent.with_name("examples") / "tiny-clip"
    assert sha256(convert(example, tmp_path).path) == GOLDEN[CASES[0].name][1]


@pytest.mark.parametrize("shards", [2, 7])
@pytest.mark.parametrize("order", [sorted, lambda names: sorted(names)[::-1]], ids=["sorted", "reversed"])
def test_shards_and_their_order_do_not_show(
    shards: int, order: Callable[[Iterable[str]], Iterable[str]], model: Path, tmp_path: Path
) -> None:
    sharded = write_model(tmp_path / "sharded" / model.name, shards=shards, order=order)
    assert convert(sharded, tmp_path / "a").path.read_bytes() == convert(model, tmp_path / "b").path.read_bytes()


def test_thread_count_does_not_show(tmp_path: Path) -> None:
    # Large enough for several chunks in a tensor, with a last chunk that is not full.
    clip = Clip(Text(32, 64, 2, 4, vocab_size=20_011), Vision(48, 96, 3, 4, 28, 14), 24)
    model = write_model(tmp_path / "m", clip)
    files = {convert(model, tmp_path / f"{n}", threads=n).path.read_bytes() for n in (1, 2, 3, 8)}
    assert len(files) == 1


def test_tensor_values_through_an_independent_reader(tmp_path: Path) -> None:
    clip = Clip(Text(32, 64, 1, 4, vocab_size=20_011), Vision(48, 96, 1, 4, 28, 14), 24)
    model = write_model(tmp_path / "m", clip)
    tensors = read(convert(model, tmp_path / "out").path).tensors
    token_embd = tensors["t.token_embd.weight"]
    assert token_embd.tensor_type == GGMLQuantizationType.F16
    assert token_embd.shape == [32, 20_011]  # GGUF counts axes from the innermost.
    written = to_source(clip, "text_model.embeddings.token_embedding.weight")
    np.testing.assert_array_equal(token_embd.data.reshape(-1), written.astype(np.float16))
    bias = tensors["v.blk.0.ffn_down.bias"]
    assert bias.tensor_type == GGMLQuantizationType.F32
    np.testing.assert_array_equal(bias.data, to_source(clip, "vision_model.encoder.layers.0.mlp.fc1.bias"))


def to_source(clip: Clip, name: str) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Return the values that tests.checkpoints writes for a tensor with seed 0."""
    seed = sum(i * b for i, b in enumerate(name.encode(), 1)) % 2**32
    return np.concatenate(list(values(seed, int(np.prod(clip.shapes()[name])))))


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("outtype", ["f16", "f32"])
def test_every_source_dtype(dtype: str, outtype: Outtype, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", dtype=dtype)
    tensors = read(convert(model, tmp_path / "out", options=Options(outtype=outtype)).path).tensors
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    source = to_dtype(to_source(TINY, name), dtype)
    single = (source.astype("<u4") << 16).view("<f4") if dtype == "BF16" else source.astype("<f4")
    expected = single.astype({"f16": "<f2", "f32": "<f4"}[outtype])
    np.testing.assert_array_equal(tensors["t.blk.1.ffn_down.weight"].data.reshape(-1), expected)


def test_mixed_dtypes_in_one_file(tmp_path: Path) -> None:
    codes = ["F64", "F32", "F16", "BF16"]
    model = write_model(tmp_path / "m", dtype=lambda name: codes[len(name) % 4])
    planned = plan(model)
    assert {t.source.dtype for t in planned.tensors} == set(codes)
    assert len(read(convert(model, tmp_path / "out").path).tensors) == len(planned.tensors)


def test_omitted_fields_have_transformers_defaults(tmp_path: Path) -> None:
    # What transformers 4 writes for a model whose other sizes are CLIPTextConfig's and CLIPVisionConfig's defaults.
    small = {"num_hidden_layers": 1, "vocab_size": 50}
    clip = Clip(Text(512, 2048, 1, 8, vocab_size=50), Vision(768, 3072, 1, 12), 512)
    model = write_model(tmp_path / "m", clip)
    full = convert(model, tmp_path / "full").path
    write_json(
        model / "config.json",
        {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "text_config": {"model_type": "clip_text_model", **small},
            "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 1},
            "torch_dtype": "float32",
        },
    )
    assert convert(model, tmp_path / "short").path.read_bytes() == full.read_bytes()


@pytest.mark.parametrize("key", ["text_config", "vision_config"])
def test_a_config_dict_wins_completely(key: str, model: Path, tmp_path: Path) -> None:
    expected = convert(model, tmp_path / "a").path.read_bytes()

    def move(config: dict[str, Any]) -> None:
        config[f"{key}_dict"] = config[key]
        config[key] = {"hidden_size": 1024, "hidden_act": "gelu", "num_hidden_layers": 24}

    edit_json(model / "config.json", move)
    assert convert(model, tmp_path / "b").path.read_bytes() == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"), (None, "tiny-clip"), ("", None)],
    ids=["name_or_path", "directory", "empty"],
)
def test_general_name(given: str | None, expected: str | None, model: Path, tmp_path: Path) -> None:
    edit_json(model / "config.json", lambda config: config.update(_name_or_path=given))
    assert value(convert(model, tmp_path / "out").path, "general.name") == expected


def test_projection_dim_is_the_tensors(model: Path, tmp_path: Path) -> None:
    # LAION's H and bigG say 512 in the sub-configs, and have projections of 1024 and 1280 rows.
    def forget(config: dict[str, Any]) -> None:
        config["text_config"]["projection_dim"] = config["vision_config"]["projection_dim"] = 512

    edit_json(model / "config.json", forget)
    result = convert(model, tmp_path / "out")
    assert [value(result.path, f"clip.{tower}.projection_dim") for tower in ("text", "vision")] == [24, 24]
    assert [w for w in result.warnings if "projection_dim is 512" in w and "24 is written" in w] == list(
        result.warnings
    )
    assert len(result.warnings) == 2


def test_values_that_f16_cannot_hold_are_counted(tmp_path: Path) -> None:
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    model = write_model(tmp_path / "m", dtype=lambda n: "F64" if n == name else "F32")
    tensors = overflowing(name)
    write_with_values(model, tensors)
    result = convert(model, tmp_path / "out")
    (warning,) = result.warnings
    assert warning.startswith("t.blk.0.ffn_down.weight: 3 of 2,048 values")
    assert "--outtype f32" in warning
    assert convert(model, tmp_path / "out", options=Options(outtype="f32")).warnings == ()


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16"])
def test_overflow_in_every_dtype_that_can(dtype: str, tmp_path: Path) -> None:
    name = "vision_model.embeddings.patch_embedding.weight"
    model = write_model(tmp_path / "m", dtype=lambda n: dtype if n == name else "F32")
    write_with_values(model, overflowing(name))
    for outtype in ("f16", "f32"):  # The convolution is f16 in both, so no other outtype would help.
        (warning,) = convert(model, tmp_path / "out", options=Options(outtype=outtype)).warnings
        assert "v.patch_embd.weight: 3 of 28,224 values" in warning
        assert "--outtype" not in warning


def overflowing(name: str) -> dict[str, list[float]]:
    """Three finite values that float16 cannot hold, and neighbours that it can or that were never finite."""
    return {name: [70_000.0, float("inf"), -1e6, 65_504.0, float("nan"), 3e38, -float("inf"), 6e-8]}


def write_with_values(model: Path, beginnings: dict[str, list[float]]) -> None:
    """Replace the first values of tensors in a model's one safetensors file."""
    path = model / "model.safetensors"
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, numbers in beginnings.items():
        start = 8 + length + header[name]["data_offsets"][0]
        data = to_dtype(np.array(numbers, np.float32), header[name]["dtype"]).tobytes()
        raw[start : start + len(data)] = data
    path.write_bytes(raw)


def test_progress_counts_every_byte_once(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    threads: set[int] = set()

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        threads.add(threading.get_ident())

    result = convert(model, tmp_path / "out", progress=progress)
    assert seen[-1] == (result.bytes_out, result.bytes_out)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert threads == {threading.get_ident()}


def test_a_callback_that_raises_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        convert(model, tmp_path / "new" / "out", progress=progress)
    assert not (tmp_path / "new").exists()


def test_result_record(model: Path, tmp_path: Path) -> None:
    result = convert(model, tmp_path / "out", options=Options(vision_only=True))
    assert result.path == tmp_path / "out" / "vision-model-f16.gguf"
    assert result.tensors == 1 + 1 + 1 + 2 + 3 * 16 + 2 + 1
    assert result.bytes_in > result.bytes_out > 0
    assert result.seconds > 0


def test_arguments_that_contradict_each_other(model: Path) -> None:
    with pytest.raises(ValueError, match="exclude"):
        convert(model, options=Options(text_only=True, vision_only=True))
    with pytest.raises(ValueError, match="outtype is 'q9'"):
        convert(model, options=Options(outtype="q9"))  # type: ignore[arg-type]


def test_a_bare_tower_of_the_other_kind_is_not_looked_at(model: Path, tmp_path: Path) -> None:
    # --vision-only needs no vocabulary and no text tensors.
    (model / "vocab.json").unlink()
    shapes = {n: s for n, s in TINY.shapes().items() if not n.startswith("text_model.encoder.layers.1")}
    write_safetensors(model / "model.safetensors", shapes)
    assert convert(model, tmp_path / "out", options=Options(vision_only=True)).tensors == 56
    with pytest.raises(CheckpointError, match="no file has tensor 'text_model"):
        write_json(model / "vocab.json", {f"t{i}": i for i in range(99)})
        convert(model, tmp_path / "out", options=Options(text_only=True))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_a_file_that_is_replaced_keeps_its_mode(model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path / "x.gguf").path
    content = path.read_bytes()
    for mode in (0o600, 0o664):
        path.chmod(mode)
        assert convert(model, path).path.read_bytes() == content
        assert stat.S_IMODE(path.stat().st_mode) == mode
    # One that nobody may write to is replaced, as ever, and then belongs to who wrote it.
    path.chmod(0o444)
    convert(model, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
