"""What people have instead of a model: each is recognised and named, with what to do about it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipgguf import ClipGGUFError, Options, convert, plan
from tests.checkpoints import write_model
from tests.clip_checkpoints import write_clip, write_pipeline
from tests.conftest import Run
from tests.json_files import write_json
from tests.layouts import write_cache
from tests.llava_checkpoints import Llava, write_original
from tests.open_clip_checkpoints import write_open_clip
from tests.weights import safetensors_header

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 605247071\n"
PAGES = (
    b"<!DOCTYPE html>\n<html>Access denied</html>",
    b"\xef\xbb\xbf\r\n<!doctype html><html class=''>",
    b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
    b"<html>",
    b"<!-- x -->",
)
TRANSFORMERS_4 = "transformers 4 turns them into ours:"
UNFINISHED = "download that is not finished"


def problem(model: Path, **options: Any) -> str:
    """Return the one line that refuses a model."""
    with pytest.raises(ClipGGUFError) as caught:
        plan(model, options=Options(**options))
    (line,) = caught.value.problems
    return line


# Files.

MODELS: dict[str, Callable[[Path], Path]] = {
    "config.json": write_model,
    "vocab.json": write_model,
    "preprocessor_config.json": write_model,
    "model.safetensors": write_model,
    "model.safetensors.index.json": lambda d: write_model(d, shards=2),
    "model-00002-of-00002.safetensors": lambda d: write_model(d, shards=2),
    "pytorch_model.bin": lambda d: write_clip(d, suffix=".bin"),
    "tokenizer.json": lambda d: write_clip(d, vocabulary="tokenizer.json"),
    "open_clip_config.json": write_open_clip,
    "open_clip_model.safetensors": write_open_clip,
}


@pytest.mark.parametrize("content", [POINTER, *PAGES], ids=["git-lfs", *(f"page-{n}" for n in range(len(PAGES)))])
@pytest.mark.parametrize("name", MODELS)
def test_pointer_or_page_in_place_of_a_file(name: str, content: bytes, tmp_path: Path) -> None:
    model = MODELS[name](tmp_path / "m")
    (model / name).write_bytes(content)
    line = problem(model)
    assert line.startswith(f"{model / name}: is a {'Git LFS pointer' if content == POINTER else 'web page'}")
    assert ("`git lfs pull`" in line) == (content == POINTER)
    assert "`hf download`" in line


@pytest.mark.parametrize("option", ["llava_projector", "vision_config", "vocab"])
def test_pointer_in_place_of_a_file_that_is_given(option: str, tmp_path: Path) -> None:
    model = write_original(tmp_path / "m", Llava(), tower="inside") if option == "vision_config" else None
    given = tmp_path / "given.bin"
    given.write_bytes(POINTER)
    line = problem(model or write_model(tmp_path / "m"), **{option: given})
    assert line.startswith(f"{given}: is a Git LFS pointer")


def test_clone_without_git_lfs(tmp_path: Path, run: Run) -> None:
    # All that is large is a pointer; that of the weights is the one that is told of.
    model = write_clip(tmp_path / "m", suffix=".bin")
    (model / "pytorch_model.bin").write_bytes(POINTER)
    (model / "tf_model.h5").write_bytes(POINTER)
    for path in (model, model / "pytorch_model.bin"):
        result = run(path)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert "pytorch_model.bin: is a Git LFS pointer" in line


def test_small_header_that_looks_like_a_page(tmp_path: Path) -> None:
    # A header of 0x3c bytes begins with "<", one of 0x613c with "<a".
    for length in (0x3C, 0x3C + 8, 0x613C):
        model = write_model(tmp_path / f"{length}")
        path = model / "model.safetensors"
        content = path.read_bytes()
        own = int.from_bytes(content[:8], "little")
        padded = content[8 : 8 + own] + b" " * (0x613C - own)
        path.write_bytes(len(padded).to_bytes(8, "little") + padded + content[8 + own :])
        plan(model)
    header = safetensors_header({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})
    text = header[8:].rstrip() + b" " * 60
    path.write_bytes((60).to_bytes(8, "little") + text[:60])
    with pytest.raises(ClipGGUFError, match=r"no file has tensor|asks for"):
        plan(model)


@pytest.mark.parametrize("name", ["model.gguf", "weights", "model.safetensors"])
def test_gguf_file_in_place_of_a_model(name: str, model: Path, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "elsewhere" / name
    path.parent.mkdir()
    shutil.copy(convert(model, tmp_path / "x.gguf").path, path)
    expected = f"{path}: is a GGUF file already; `clipgguf inspect` looks into it"
    assert problem(path) == expected
    assert problem(model, llava_projector=path) == expected
    assert run(path).stderr == f"clipgguf: error: {expected}\n"
    assert run("inspect", path).returncode == 0


@pytest.mark.parametrize("suffix", ["incomplete", "crdownload", "part"])
def test_file_of_a_download_that_is_not_finished(suffix: str, model: Path) -> None:
    path = (model / "model.safetensors").rename(model / f"model.safetensors.{suffix}")
    assert problem(path) == f"{path}: is a {UNFINISHED}; the same `hf download` once more finishes it"


# Directories.


def test_download_that_is_not_finished(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", shards=2)
    download = model / ".cache" / "huggingface" / "download"
    download.mkdir(parents=True)
    part = "7gYzKq.4d7a21.incomplete"
    (download / part).write_bytes(b"")
    # It does not matter as long as all is there that is wanted.
    plan(model)
    expected = f"{model}: is a {UNFINISHED} ({part}); the same `hf download` once more"
    shard = model / "model-00001-of-00002.safetensors"
    shard.unlink()
    with pytest.raises(ClipGGUFError) as caught:
        plan(model)
    first, second = caught.value.problems
    assert first.startswith(expected)
    assert second == f"{shard}: is missing, model.safetensors.index.json names it"
    (model / "model.safetensors.index.json").unlink()
    assert problem(model).startswith(expected)
    (model / "config.json").unlink()
    assert problem(model).startswith(expected)


def test_snapshot_of_a_download_that_is_not_finished(tmp_path: Path) -> None:
    snapshot = write_cache(tmp_path / "hub", write_model(tmp_path / "m"))
    (snapshot / "model.safetensors").unlink()
    blobs = snapshot.parent.parent / "blobs"
    (blobs / "4d7a21.incomplete").write_bytes(b"")
    assert f"{snapshot}: is a {UNFINISHED} (4d7a21.incomplete)" in problem(snapshot)


def test_repository_in_a_cache(tmp_path: Path) -> None:
    snapshot = write_cache(tmp_path / "hub", write_model(tmp_path / "tiny"))
    root = snapshot.parent.parent
    (root / "refs").mkdir()
    (snapshot.parent / ("0" * 40)).mkdir()
    (root / "refs" / "main").write_text(snapshot.name)
    for directory in (root, root / "snapshots"):
        line = problem(directory)
        assert line == (
            f"{directory}: is a model's folder in the cache of the Hugging Face hub, the model itself is in {snapshot}"
        )
    assert convert(snapshot, tmp_path / "out").path.read_bytes()[:4] == b"GGUF"
    # With a refs/main that names nothing: one of those that are there.
    for content in (b"../../secret", b"f" * 40, b"", b"\xff"):
        (root / "refs" / "main").write_bytes(content)
        assert problem(root).endswith(f"the model itself is in {snapshot.parent / ('0' * 40)}")


def test_pipeline_of_diffusers(tmp_path: Path, run: Run) -> None:
    root = write_pipeline(tmp_path / "sdxl")
    write_json(root / "model_index.json", {"_class_name": "StableDiffusionXLPipeline"})
    folders = [root / name for name in ("text_encoder", "text_encoder_2", "image_encoder")]
    line = problem(root)
    assert line == (
        f"{root}: is a diffusers pipeline of several models, each is converted by itself: "
        f"{' or '.join(map(str, folders))}"
    )
    for folder in folders:
        plan(folder)
        shutil.rmtree(folder)
    assert problem(root).endswith("is a diffusers pipeline of several models, none of its models is a CLIP")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flax_model.msgpack", f"for Flax (flax_model.msgpack); {TRANSFORMERS_4} load the model with from_flax=True"),
        ("tf_model.h5", f"only for TensorFlow (tf_model.h5); {TRANSFORMERS_4} load the model with from_tf=True"),
        ("model.onnx", "only for ONNX (model.onnx); they should be converted from the checkpoint"),
        ("onnx/vision_model.onnx", "only for ONNX (onnx/vision_model.onnx)"),
        ("model-f16.gguf", "only for GGUF already (model-f16.gguf); `clipgguf inspect`"),
        ("epoch_3.pt", "; it has epoch_3.pt, which can be given as the model"),
        ("model.fp16.safetensors", "of a variant; `--variant fp16` takes them"),
        ("pytorch_model.non_ema.bin", "of a variant; `--variant non_ema` takes them"),
        ("model.fp16-00001-of-00002.safetensors", "of a variant; `--variant fp16` takes them"),
        ("model.safetensors.index.fp16.json", "of a variant; `--variant fp16` takes them"),
        ("model.fp16.safetensors.index.json", "of a variant; `--variant fp16` takes them"),
        ("model-00001-of-00002.safetensors", "; it has shards (model-00001-of-00002.safetensors), but not the index"),
        ("training_args.bin", "has no weights, should have one of model.safetensors.index.json"),
        ("README.md", "has no weights, should have one of model.safetensors.index.json"),
    ],
)  # fmt: skip
def test_other_weights(name: str, words: str, model: Path, run: Run) -> None:
    (model / "model.safetensors").unlink()
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"")
    line = problem(model)
    assert line.startswith(f"{model}: has ")
    assert words in line


def test_other_variants(tmp_path: Path) -> None:
    model = write_clip(tmp_path / "m", variant="fp16", dtype="F16")
    assert "`--variant fp16` takes them" in problem(model)
    assert "`--variant fp16` takes them" in problem(model, variant="bf16")
    plan(model, options=Options(variant="fp16"))
    line = problem(write_clip(tmp_path / "n"), variant="bf16")
    assert line.startswith(f"{tmp_path / 'n'}: has no weights, should have one of model.safetensors.index.bf16.json")
    assert line.endswith("; without --variant model.safetensors is taken")


def test_many_other_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    for number in range(10):
        (model / f"epoch_{number}.pt").write_bytes(b"")
    assert "epoch_0.pt, epoch_1.pt, epoch_2.pt, epoch_3.pt, epoch_4.pt and 5 more" in problem(model)


# Names on the hub.


@pytest.mark.parametrize(
    "name",
    [
        "openai/clip-vit-base-patch32",
        "https://huggingface.co/openai/clip-vit-base-patch32",
        "https://huggingface.co/openai/clip-vit-base-patch32/tree/main",
    ],
)
def test_name_on_the_hub(name: str, run: Run, tmp_path: Path) -> None:
    result = run(name)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.endswith(
        "; if it is a model of the Hugging Face hub, `hf download openai/clip-vit-base-patch32 --local-dir "
        "clip-vit-base-patch32` gets it, and clip-vit-base-patch32 can then be converted"
    )
    model = write_original(tmp_path / "m", Llava())
    assert "`hf download openai/clip-vit-base-patch32 " in run(model, "--vision-tower", name).stderr


@pytest.mark.parametrize(
    "name", ["clip", "there/clip", "a/b/c", "../a/b", "/a/b", "a/model.safetensors", "a/.b", "a/b c"]
)
def test_path_that_is_no_name_on_the_hub(name: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "work" / "there").mkdir()
    result = run(name)
    assert result.returncode == 1
    assert "is missing" in result.stderr
    assert "hub" not in result.stderr
