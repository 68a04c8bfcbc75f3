"""Shards and their index: tensors that stand in two, files that are missing, names that something wraps."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipgguf import CheckpointError, Options, convert, plan
from tests.checkpoints import TINY, write_model
from tests.clip_checkpoints import write_clip
from tests.conftest import Run
from tests.gguf_forward import Floats
from tests.json_files import edit_json, write_json
from tests.llava_checkpoints import Llava, write_hf, write_original, write_projector
from tests.open_clip_checkpoints import open_clip_arrays, write_open_clip
from tests.processes import taking_at_most
from tests.torch_bytes import archive, entries, mapping, number, ordered_dict, pickled, storage, tensor, text
from tests.weights import arrays_of, tensor_values, write_file, write_safetensors

INDEX = "model.safetensors.index.json"
EMBEDDING = "text_model.embeddings.token_embedding.weight"


def problems(model: Path, **options: object) -> tuple[str, ...]:
    with pytest.raises(CheckpointError) as caught:
        plan(model, options=Options(**options))  # type: ignore[arg-type]
    return caught.value.problems


# A tensor in two shards.


def with_second(model: Path, seed: int = 0, dtype: str = "F32", shape: tuple[int, ...] = (99, 32)) -> Path:
    """Write a model in three shards, and one of its tensors a second time, beside another one in a fourth shard."""
    write_model(model, shards=3)
    write_safetensors(model / "more.safetensors", {"logit_scale": (), EMBEDDING: shape}, dtype, seed)
    index = json.loads((model / INDEX).read_text())
    index["weight_map"]["logit_scale"] = "more.safetensors"
    write_json(model / INDEX, index)
    return model


def test_tensor_that_is_the_same_in_two_shards(tmp_path: Path) -> None:
    # As transformers saves tied weights.
    expected = convert(write_model(tmp_path / "a" / "m")).path.read_bytes()
    assert convert(with_second(tmp_path / "b" / "m")).path.read_bytes() == expected


@pytest.mark.parametrize(("seed", "dtype", "shape"), [(1, "F32", (99, 32)), (0, "F16", (99, 32)), (0, "F32", (32, 99))])
def test_tensor_that_is_another_in_another_shard(seed: int, dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    model = with_second(tmp_path / "m", seed, dtype, shape)
    (shard,) = {
        file for name, file in json.loads((model / INDEX).read_text())["weight_map"].items() if name == EMBEDDING
    }
    *others, problem = problems(model)
    assert not [line for line in others if EMBEDDING in line]
    assert f"tensor '{EMBEDDING}' stands in " in problem
    assert str(model / shard) in problem
    assert str(model / "more.safetensors") in problem


@pytest.mark.parametrize("count", [1 << 18, (1 << 18) + 1, 1 << 19])
def test_last_byte_of_a_large_tensor_in_two_shards(count: int, tmp_path: Path) -> None:
    # 1 MiB, of which so much is compared at a time; one value more; twice that.
    model = write_model(tmp_path / "m")
    for file in ("x", "y"):
        write_safetensors(model / f"{file}.safetensors", {"big": (count,), file: ()})
    names = dict.fromkeys(TINY.shapes(), "model.safetensors")
    write_json(model / INDEX, {"weight_map": {**names, "x": "x.safetensors", "y": "y.safetensors"}})
    plan(model, options=Options(ignore_unknown=True))
    with (model / "y.safetensors").open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        opened.seek(8 + length + 4 * count - 1)
        opened.write(b"\x55")
    (problem,) = problems(model, ignore_unknown=True)
    assert "tensor 'big' stands in" in problem


@pytest.mark.parametrize("compressed", [False, True])
def test_tensor_in_two_shards_of_torch(compressed: bool, tmp_path: Path) -> None:
    model = write_clip(tmp_path / "m", shards=3, suffix=".bin")
    index = json.loads((model / "pytorch_model.bin.index.json").read_text())
    own, arrays = model / index["weight_map"][EMBEDDING], arrays_of(TINY.shapes())
    index["weight_map"]["logit_scale"] = "more.bin"
    write_json(model / "pytorch_model.bin.index.json", index)
    for change in (0, 1):
        arrays[EMBEDDING] = arrays[EMBEDDING].copy()
        arrays[EMBEDDING][-1, -1] += change
        write_file(model / "more.bin", {name: arrays[name] for name in ("logit_scale", EMBEDDING)})
        for file in (own, model / "more.bin") if compressed else ():
            file.write_bytes(archive(entries(file.read_bytes()), compression=zipfile.ZIP_DEFLATED))
        if change:
            (problem,) = problems(model)
            assert f"tensor '{EMBEDDING}' stands in " in problem
        else:
            plan(model)


def test_language_models_tensors_in_two_shards_are_not_looked_at(tmp_path: Path) -> None:
    model = write_hf(tmp_path / "m", Llava(), shards=2)
    head, norm = "language_model.lm_head.weight", "language_model.model.norm.weight"
    write_file(model / "more.safetensors", {name: tensor_values("other", (3,)) for name in (head, norm)})
    edit_json(model / INDEX, lambda index: index["weight_map"].update({norm: "more.safetensors"}))
    plan(model)


# Files that are missing.


@pytest.mark.slow
def test_index_of_very_many_missing_shards(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    write_json(model / INDEX, {"weight_map": {f"t{n}": f"s{n:06}.safetensors" for n in range(240_000)}})
    with taking_at_most(5):
        lines = problems(model)
    assert [line.split(": ")[0] for line in lines[:10]] == [str(model / f"s{n:06}.safetensors") for n in range(10)]
    assert all(line.endswith(f"is missing, {INDEX} names it") for line in lines[:10])
    assert lines[10:] == ("and 239,990 more like these",)


@pytest.mark.parametrize(
    ("files", "words"), [("../x{}", "is no file name inside"), ("model.safetensors", "lacks tensor 't")]
)
def test_index_with_very_many_faults(files: str, words: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    write_json(model / INDEX, {"weight_map": {f"t{n}": files.format(n) for n in range(30_000)}})
    *lines, last = problems(model)
    assert len(lines) == 10
    assert all(words in line for line in lines)
    assert last == "and 29,990 more like these"


def test_ten_lines_are_all(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    write_json(model / INDEX, {"weight_map": {f"t{n}": f"{n}" for n in range(10)}})
    assert len(problems(model)) == 10


# Names that something wraps.


def training_checkpoint(arrays: dict[str, Floats], prefix: str = "module.", key: str = "state_dict") -> bytes:
    """A file as OpenCLIP's training saves it: epoch, name, state dict and the optimizer's state."""
    storages: dict[str, bytes] = {}

    def saved(array: Floats) -> bytes:
        name = str(len(storages))
        storages[f"data/{name}"] = array.astype("<f4").tobytes()
        strides = tuple(stride // 4 for stride in array.strides)
        return tensor(storage(name, array.size), 0, array.shape, strides)

    state = {prefix + name: saved(array) for name, array in arrays.items()}
    moments = mapping({"step": saved(np.ones((), np.float32)), "exp_avg": saved(np.ones((3, 4), np.float32))})
    optimizer = b"}(" + b"".join(number(n) + moments for n in range(2)) + b"u"
    value = mapping(
        {
            "epoch": number(3),
            "name": text("2026_11_25-model_ViT-B-32"),
            key: mapping(state),
            "optimizer": mapping({"state": optimizer, "param_groups": ordered_dict()}),
            "scaler": mapping({"scale": number(65536)}),
        }
    )
    return archive({"data.pkl": pickled(value), "byteorder": b"little", **storages, "version": b"3\n"}, root="epoch_3/")


@pytest.mark.parametrize("prefix", ["module.", "", "_orig_mod.", "module._orig_mod.module."])
def test_openclips_training_checkpoint(prefix: str, tmp_path: Path, run: Run) -> None:
    expected = convert(write_open_clip(tmp_path / "a" / "m")).path.read_bytes()
    model = tmp_path / "b" / "m"
    write_open_clip(model)
    (model / "open_clip_model.safetensors").unlink()
    (model / "epoch_3.pt").write_bytes(training_checkpoint(open_clip_arrays(TINY), prefix))
    assert convert(model / "epoch_3.pt").path.read_bytes() == expected
    result = run(model / "epoch_3.pt", "-o", "x.gguf")
    assert result.returncode == 0, result.stderr
    assert len(result.stderr.splitlines()) == 1
    # Also where the directory that the run began with has another config of the model.
    shutil.copy(write_clip(tmp_path / "c") / "config.json", model)
    assert convert(model / "epoch_3.pt").path.read_bytes() == expected


def test_openclips_training_checkpoint_alone(tmp_path: Path, run: Run) -> None:
    (tmp_path / "epoch_3.pt").write_bytes(training_checkpoint(open_clip_arrays(TINY)))
    result = run(tmp_path / "epoch_3.pt")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "open_clip_config.json: is missing" in line
    # And as a directory.
    (line,) = run(tmp_path).stderr.splitlines()
    assert "config.json: is missing" in line


def test_name_of_the_file_is_what_messages_say(tmp_path: Path) -> None:
    model = write_open_clip(tmp_path / "m")
    arrays = open_clip_arrays(TINY)
    arrays["visual.more"] = np.ones(3, np.float32)
    (model / "epoch_3.pt").write_bytes(training_checkpoint(arrays))
    (problem,) = problems(model / "epoch_3.pt")
    assert "epoch_3.pt: tensor 'module.visual.more' is unknown" in problem


def wrapped(model: Path, prefix: str = "module.") -> Path:
    """Write a model's safetensors files again, with a prefix before all names."""
    for path in model.glob("*.safetensors"):
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        renamed = {name if name == "__metadata__" else prefix + name: info for name, info in header.items()}
        data = json.dumps(renamed).encode()
        path.write_bytes(len(data).to_bytes(8, "little") + data + content[8 + length :])
    for path in model.glob("*.index.json"):
        names = json.loads(path.read_text())["weight_map"]
        write_json(path, {"weight_map": {prefix + name: file for name, file in names.items()}})
    return model


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "CLIP": write_model,
    "CLIP in shards": lambda d: write_model(d, shards=3),
    "OpenCLIP": write_open_clip,
    "LLaVA": lambda d: write_hf(d, Llava(has_newline=True)),
    "LLaVA in shards": lambda d: write_hf(d, Llava(), shards=2, spelling="5, in memory"),
    "original LLaVA": lambda d: write_original(d, Llava(), tower="folder"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_of_all_names(family: str, tmp_path: Path) -> None:
    expected = convert(FAMILIES[family](tmp_path / "a" / "m")).path.read_bytes()
    assert convert(wrapped(FAMILIES[family](tmp_path / "b" / "m"))).path.read_bytes() == expected


def test_prefix_of_some_names_is_a_part_of_them(tmp_path: Path) -> None:
    model = wrapped(write_model(tmp_path / "m", shards=2))
    index = json.loads((model / INDEX).read_text())
    index["weight_map"]["other"] = "model-00001-of-00002.safetensors"
    write_json(model / INDEX, index)
    assert any("lacks tensor 'other'" in line for line in problems(model))


@pytest.mark.parametrize("key", ["state_dict", "module"])
def test_projector_in_a_training_checkpoint(key: str, tmp_path: Path) -> None:
    llava = Llava()
    clip = write_model(tmp_path / "m", llava.clip)
    expected = convert(
        clip, tmp_path / "a", options=Options(llava_projector=write_projector(tmp_path / "p.bin", llava))
    ).path
    arrays = {name: tensor_values(name, shape) for name, shape in llava.projector_shapes().items()}
    path = tmp_path / "deepspeed.pt"
    path.write_bytes(training_checkpoint(arrays, key=key))
    assert (
        convert(clip, tmp_path / "b", options=Options(llava_projector=path)).path.read_bytes() == expected.read_bytes()
    )
