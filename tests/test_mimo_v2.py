"""MiMo-V2.5's audio part: a folder of its own beside the weights, and codebooks of several lengths."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipgguf import CheckpointError, ClipGGUFError, ConfigError, Options, convert, inspect, plan, verify
from clipgguf.families import _open
from clipgguf.sources.web_folder import WebFolder
from tests.family_fixtures import FIXTURES, Fixture, by_folder, weights
from tests.gguf_reading import read
from tests.hub_server import HubServer
from tests.json_files import edit_json
from tests.processes import MIB, peak_rss
from tests.weights import write_sparse_safetensors

FIXTURE = Fixture.read(FIXTURES / "mimo_v2.json")
FOLDER = "audio_tokenizer"
BOOK = FOLDER + "/encoder.quantizer.vq.layers.{}._codebook.embed"


def names(path: Path) -> set[str]:
    return {tensor.name for tensor in inspect(path).tensors}


def test_each_part_alone_is_its_half_of_the_whole(tmp_path: Path) -> None:
    model = FIXTURE.write(tmp_path / "m")
    whole = names(convert(model, tmp_path / "both.gguf").path)
    sound = convert(model, tmp_path / "sound.gguf", Options(audio_only=True)).path
    assert verify(sound, model).agrees
    shutil.rmtree(model / FOLDER)
    image = convert(model, tmp_path / "image.gguf", Options(vision_only=True)).path
    assert verify(image, model).agrees
    assert [len(inspect(path).towers) for path in (sound, image)] == [1, 1]
    assert names(sound) | names(image) == whole
    assert not names(sound) & names(image)


def test_a_model_without_an_audio_configuration_sees_only(tmp_path: Path) -> None:
    model = FIXTURE.write(tmp_path / "m")
    expected = convert(model, tmp_path / "a.gguf", Options(vision_only=True)).path.read_bytes()
    shutil.rmtree(model / FOLDER)
    edit_json(model / "config.json", lambda config: config.pop("audio_config"))
    deaf = {name: shape for name, shape in FIXTURE.shapes.items() if not name.startswith(("audio", "speech"))}
    other = replace(FIXTURE, shapes=deaf, files={"config.json": {}}).write(tmp_path / "other")
    shutil.copyfile(other / "model.safetensors", model / "model.safetensors")
    assert convert(model, tmp_path / "b.gguf").path.read_bytes() == expected
    with pytest.raises(ConfigError, match=r"which gives an mmproj file for images; --audio-only does not apply"):
        plan(model, Options(audio_only=True))


@pytest.mark.parametrize(
    ("without", "problem"),
    [
        (FOLDER, r"audio_tokenizer.config\.json: is missing, .*; --vision-only does without"),
        (f"{FOLDER}/config.json", r"audio_tokenizer.config\.json: is missing, .*; --vision-only does without"),
        (f"{FOLDER}/model.safetensors", r"audio_tokenizer: has no weights, should have one of model\.safetensors"),
    ],
)
def test_what_is_missing_of_the_folder_is_one_line(without: str, problem: str, tmp_path: Path) -> None:
    model = FIXTURE.write(tmp_path / "m")
    (shutil.rmtree if without == FOLDER else Path.unlink)(model / without)
    with pytest.raises(ClipGGUFError, match=problem) as error:
        plan(model)
    assert len(error.value.problems) == 1


def test_shorter_codebooks_are_followed_by_zeros(tmp_path: Path) -> None:
    found = read(convert(FIXTURE.write(tmp_path / "m"), tmp_path / "x.gguf").path)
    sizes = found.metadata["clip.audio.rvq.codebook_size"]
    shapes = [FIXTURE.shapes[BOOK.format(number)] for number in range(3)]
    assert sizes == [rows for rows, _ in shapes]
    assert len(set(sizes)) > 1
    books = found.tensors["a.rvq.codebook.weight"].data
    assert books.shape == (3, max(sizes), shapes[0][1])
    for number, rows in enumerate(sizes):
        assert np.array_equal(books[number, :rows], weights(BOOK.format(number), shapes[number]))
        assert not books[number, rows:].any()


@pytest.mark.parametrize("number", range(3))
def test_a_missing_codebook_is_named(number: int, tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in FIXTURE.shapes.items() if name != BOOK.format(number)}
    with pytest.raises(CheckpointError) as error:
        plan(replace(FIXTURE, shapes=shapes).write(tmp_path / "m"))
    (problem,) = error.value.problems
    assert f"no file has tensor {BOOK.format(number)!r}" in problem


@pytest.mark.parametrize(
    ("file", "changes", "problem"),
    [
        (f"{FOLDER}/config.json", {"encoder_causal": False}, "encoder_causal is False, which readers would compute"),
        (f"{FOLDER}/config.json", {"encoder_layers": 2}, "encoder_layers is 2, should be at least 3"),
        (f"{FOLDER}/config.json", {"encoder_attn_window_size": [-1, -1]}, r"is \[-1, -1\], should begin with 1 or mo"),
        (f"{FOLDER}/config.json", {"encoder_attn_window_size": []}, r"is \[\], should begin with 1 or more"),
        (f"{FOLDER}/config.json", {"d_model": None}, r"audio_tokenizer.config\.json: d_model is missing"),
        ("config.json", {"audio_config": {"audio_channels": 3}}, "audio_config: input_local_layers is missing"),
        ("config.json", {"audio_config": [3]}, "audio_config is a list of 1, should be an object|should be an object"),
    ],
)
def test_what_readers_cannot_run_is_refused(file: str, changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    files = {**FIXTURE.files, file: {**FIXTURE.files[file], **changes}}
    model = replace(FIXTURE, files=files).write(tmp_path / "m")
    with pytest.raises(ConfigError, match=problem):
        plan(model)


def test_fewer_channels_than_codebooks_leave_tensors_unknown(tmp_path: Path) -> None:
    config = FIXTURE.files["config.json"]
    config = {**config, "audio_config": {**config["audio_config"], "audio_channels": 2}}
    model = replace(FIXTURE, files={**FIXTURE.files, "config.json": config}).write(tmp_path / "m")
    with pytest.raises(CheckpointError) as error:
        plan(model)
    assert {problem.split("'")[1] for problem in error.value.problems} == {
        BOOK.format(2),
        "speech_embeddings.2.weight",
    }


def test_the_folder_of_a_model_far_away_is_left_alone_where_it_is_not_needed(tmp_path: Path) -> None:
    with HubServer(tmp_path) as hub:
        FIXTURE.write(hub.root / "o" / "m")
        _open(WebFolder(f"{hub.plain}/o/m"), Options(vision_only=True), None)
        assert not any(FOLDER in request.path for request in hub.requests)
        _open(WebFolder(f"{hub.plain}/o/m"), Options(), None)
        assert sum(f"{FOLDER}/config.json" in r.path and r.method == "GET" for r in hub.requests) == 1


# What the tiny model's lengths are in MiMo-V2.5: the encoder's width, its feed-forward network's, a group of four
# frames, the language model's width.
REAL = {64: 1024, 160: 4096, 256: 4096, 96: 4096}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")
def test_peak_memory_of_the_audio_part_at_its_real_width(tmp_path: Path) -> None:
    shapes = {
        name: tuple(REAL.get(length, length) for length in shape)
        for name, shape in FIXTURE.shapes.items()
        if name.startswith("audio_")
    }
    shapes |= {BOOK.format(number): (1024 if number < 2 else 128, 1024) for number in range(20)}
    shapes |= {f"speech_embeddings.{number}.weight": (1280, 1024) for number in range(20)}
    model = replace(FIXTURE, shapes={}).write(tmp_path / "m")
    for folder, own in by_folder(shapes).items():
        write_sparse_safetensors(model / folder / "model.safetensors", own)
    edit_json(model / "config.json", lambda config: config.update(hidden_size=4096))
    edit_json(model / "config.json", lambda config: config["audio_config"].update(audio_channels=20))
    tokenizer = {"d_model": 1024, "encoder_ffn_dim": 4096, "encoder_attention_heads": 16}
    edit_json(model / FOLDER / "config.json", lambda config: config.update(tokenizer))
    peak = peak_rss("-m", "clipgguf", model, "-o", tmp_path / "x.gguf", "--audio-only")
    (books,) = (tensor for tensor in inspect(tmp_path / "x.gguf").tensors if tensor.name == "a.rvq.codebook.weight")
    assert books.shape == (20, 1024, 1024)
    assert peak <= 64 * MIB
