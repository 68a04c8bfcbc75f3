"""Verification: what a conversion wrote agrees with its checkpoint, in every layout, type and form."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from clipgguf import CheckpointError, ConfigError, Options, convert, verify
from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.checkpoint.gguf_reader import read_gguf
from clipgguf.options import Outtype
from clipgguf.sources.local import LocalFile
from tests.checkpoints import write_model
from tests.clip_checkpoints import write_clip, write_tower
from tests.gguf_bytes import rewritten
from tests.json_files import edit_json
from tests.llava_checkpoints import (
    SPELLINGS,
    VISION_24,
    Llava,
    write_hf,
    write_original,
    write_projector,
    write_vision_config,
)
from tests.open_clip_checkpoints import write_open_clip
from tests.siglip_checkpoints import write_siglip, write_siglip_llava, write_siglip_tower
from tests.verifying import OUTTYPES, QUANTIZED, bad, verdicts

T = GGUFValueType

# ---- what agrees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_a_conversion_agrees(outtype: Outtype, dtype: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", dtype=dtype)
    result = verify(convert(model, tmp_path, options=Options(outtype=outtype)).path, model)
    assert result.agrees
    assert (result.problems, result.notes, result.outtype) == ((), (), outtype)
    found = {tensor.ggml_type: set[str]() for tensor in result.tensors}
    for tensor in result.tensors:
        assert tensor.comparison is not None
        found[tensor.ggml_type].add(tensor.verdict)
        assert 0 <= tensor.comparison.mean_error <= tensor.comparison.worst_error
        assert tensor.comparison.worst_of_allowed <= 1.001
        assert (tensor.verdict == "exact") == (tensor.comparison.worst_error == 0)
    # Of float64 the tests write values that float32 holds.
    assert found["F32"] == {"exact"}
    assert found["F16"] == ({"exact"} if dtype == "F16" else {"rounded"} if dtype != "BF16" else found["F16"])
    if outtype == "bf16":
        assert found["BF16"] == ({"exact"} if dtype == "BF16" else {"rounded"})
    if outtype in QUANTIZED:
        assert found[outtype.upper()] == {"rounded"}


Case = tuple[Path, dict[str, Any], dict[str, Any]]


def _clip_and_projector(directory: Path, **llava: Any) -> Case:
    sizes = Llava(**llava)
    shared = {"llava_projector": write_projector(directory / "mm_projector.bin", sizes)}
    return write_clip(directory / "m", sizes.clip, suffix=".bin"), shared, shared


def _elsewhere(directory: Path, **options: Any) -> Case:
    shared = {"vision_tower": write_tower(directory / "tower", "vision", Llava().clip)}
    return write_original(directory / "m", Llava(), shards=2), shared | options, shared


def _inside(directory: Path) -> Case:
    llava = Llava(has_newline=True)
    shared = {"vision_config": write_vision_config(directory / "vision.json", llava)}
    return write_original(directory / "m", llava, tower="inside", dtype="BF16"), shared, shared


def _two_vocabularies(directory: Path) -> Case:
    model = write_model(directory / "m")
    (model / "vocab.json").rename(directory / "vocab.json")
    shared = {"vocab": directory, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
    return model, shared, shared


def _transformers(spelling: str, directory: Path) -> Case:
    return write_hf(directory / "m", Llava(has_newline=True), spelling=spelling), {}, {}


CASES: dict[str, Callable[[Path], Case]] = {
    "shards": lambda d: (write_model(d / "m", shards=3), {}, {}),
    "text": lambda d: (write_model(d / "m"), {"text_only": True}, {}),
    "vision": lambda d: (write_model(d / "m"), {"vision_only": True}, {}),
    "options": _two_vocabularies,
    "unknown tensors": lambda d: (
        write_model(d / "m", extra={"other": (3,)}),
        {"ignore_unknown": True},
        {"ignore_unknown": True},
    ),
    ".bin": lambda d: (write_clip(d / "m", suffix=".bin", dtype="F16"), {}, {}),
    "vision tower": lambda d: (write_tower(d / "m", "vision", projection=True, prefix=""), {}, {}),
    "text tower": lambda d: (write_tower(d / "m", "text", projection=False), {}, {}),
    "OpenCLIP": lambda d: (write_open_clip(d / "m"), {"outtype": "q8_0"}, {}),
    "OpenCLIP .bin": lambda d: (write_open_clip(d / "m", suffix=".bin"), {"vision_only": True}, {}),
    "SigLIP": lambda d: (write_siglip(d / "m"), {"vision_only": True}, {}),
    "SigLIP tower": lambda d: (write_siglip_tower(d / "m"), {}, {}),
    "CLIP and projector": _clip_and_projector,
    "ldp": lambda d: _clip_and_projector(d, vision=VISION_24, projector="ldp", text_width=16),
    "ldpv2": lambda d: _clip_and_projector(d, vision=VISION_24, projector="ldpv2", text_width=16),
    "mlp with norms": lambda d: _clip_and_projector(d, projector="mlp_norm"),
    "tower elsewhere": _elsewhere,
    "tower elsewhere, whole": lambda d: _elsewhere(d, keep_last_layer=True),
    "tower elsewhere, q4_0": lambda d: _elsewhere(d, outtype="q4_0"),
    "tower inside": _inside,
    "tower in a folder": lambda d: (write_original(d / "m", Llava(), tower="folder"), {}, {}),
    **{f"transformers {name}": partial(_transformers, name) for name in SPELLINGS},
    "SigLIP in LLaVA": lambda d: (write_siglip_llava(d / "m"), {}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_layout_agrees(case: str, tmp_path: Path) -> None:
    model, options, shared = CASES[case](tmp_path)
    result = verify(convert(model, tmp_path / "out", options=Options(**options)).path, model, options=Options(**shared))
    assert (result.problems, result.notes) == ((), ())
    assert [warning.rsplit("; ", 1)[1] for warning in result.warnings] == ["it is left out"] * (
        case == "unknown tensors"
    )


def test_another_feature_layer_is_noted(tmp_path: Path) -> None:
    model = write_hf(tmp_path / "m", Llava())
    for number, options in enumerate(({"feature_layer": 2}, {"feature_layer": 2, "keep_last_layer": True})):
        result = verify(convert(model, tmp_path / str(number), options=Options(**options)).path, model)  # type: ignore[arg-type]
        assert result.agrees
        assert [note.split(",")[0] for note in result.notes] == ["the projector takes the features of layer 2"]


def test_all_blocks_stored_for_an_earlier_layer(tmp_path: Path) -> None:
    # As --keep-last-layer was before: all four blocks, and not just one more than the two that are run.
    model = write_hf(tmp_path / "m", Llava())
    path = convert(model, tmp_path, options=Options(keep_last_layer=True)).path
    layer = MetadataItem("clip.vision.feature_layer", T.INT32, [2])
    result = verify(rewritten(path, tmp_path / "x.gguf", metadata=[layer]), model)
    assert (result.problems, len(result.tensors)) == ((), len(read_gguf(LocalFile(path)).tensors))


def test_a_layer_chosen_where_the_configuration_asks_for_several(tmp_path: Path) -> None:
    model = write_hf(tmp_path / "m", Llava(feature_layer=[-2, -3]))
    path = convert(model, tmp_path, options=Options(feature_layer=-2)).path
    assert verify(path, model).agrees
    with pytest.raises(ConfigError, match="several layers"):
        verify(rewritten(path, tmp_path / "x.gguf", without=["clip.vision.feature_layer"]), model)


@pytest.mark.parametrize("threads", [1, 5])
def test_results_do_not_depend_on_threads(threads: int, model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path).path
    seen: list[tuple[int, int]] = []
    result = verify(path, model, threads=threads, progress=lambda done, total: seen.append((done, total)))
    assert result == verify(path, model)
    total = (model / "model.safetensors").stat().st_size
    assert seen[-1][0] == seen[-1][1] < total < seen[-1][1] + 20_000
    assert sorted(seen) == seen


# ---- other types, other models ---------------------------------------------------------------------------------------


def test_other_types_are_noted_and_compared(tmp_path: Path) -> None:
    # The checkpoint is f16, so that another program that quantizes an f16 file gives the same.
    model = write_model(tmp_path / "m", dtype="F16")
    types = {f"t.blk.{i}.ffn_up.weight": GGMLQuantizationType.Q4_1 for i in (0, 1)}
    path = rewritten(convert(model, tmp_path).path, tmp_path / "x.gguf", types=types)
    result = verify(path, model)
    assert result.agrees
    assert result.notes == (
        "2 tensors are of type Q4_1, where a conversion to f16 gives F16; compared by the type that the file has",
    )
    assert {verdicts(result)[name] for name in types} == {"rounded"}


def test_a_file_type_that_is_not_ours(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    for outtype in ("f32", "q5_0"):
        item = MetadataItem("general.file_type", T.UINT32, 15)
        path = rewritten(
            convert(model, tmp_path, options=Options(outtype=outtype)).path, tmp_path / "x.gguf", metadata=[item]
        )
        result = verify(path, model)
        # Most bytes of the tiny model's matrices are f16 in the quantized file, whose types are then noted.
        assert result.outtype == ("f32" if outtype == "f32" else "f16")
        assert not bad(result)
        assert "metadata key 'general.file_type' is 15, should be " in result.problems[0]


def test_a_type_to_which_nothing_rounds(model: Path, tmp_path: Path) -> None:
    name = "v.blk.0.ln1.bias"
    doubles = {name: np.zeros(48, np.float64)}
    path = convert(model, tmp_path).path
    result = verify(rewritten(path, tmp_path / "x.gguf", without=[name], tensors=doubles), model)
    assert bad(result) == {name: "unknown type"}
    assert result.problems == (f"tensor {name!r} is of type F64, whose values cannot be verified",)


def test_a_projector_that_was_not_given(tmp_path: Path) -> None:
    model, options, _ = _clip_and_projector(tmp_path)
    path = convert(model, tmp_path, options=Options(**options)).path
    with pytest.raises(CheckpointError, match=r"has a LLaVA projector, .* has none; --llava-projector takes it"):
        verify(path, model)
    result = verify(convert(model, tmp_path, options=Options(vision_only=True)).path, model, options=Options(**options))
    assert {tensor.verdict for tensor in result.tensors if tensor.name.startswith("mm.")} == {"missing"}


def test_a_file_of_something_else(model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path).path
    names = [tensor.name for tensor in read_gguf(LocalFile(path)).tensors]
    keys = [item.key for item in read_gguf(LocalFile(path)).metadata]
    other = rewritten(path, tmp_path / "x.gguf", without=names + keys)
    with pytest.raises(CheckpointError, match="is no GGUF file of CLIP, it has neither towers nor a projector"):
        verify(other, model)
    with pytest.raises(CheckpointError, match="is no GGUF file"):
        verify(model / "model.safetensors", model)
    with pytest.raises(ValueError, match="threads is 0"):
        verify(path, model, threads=0)


def test_a_model_of_another_depth(model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path).path
    edit_json(model / "config.json", lambda config: config["vision_config"].update(num_hidden_layers=4))
    with pytest.raises(CheckpointError, match="no file has tensor 'vision_model"):
        verify(path, model)
