"""Qwen3-TTS: what llama.cpp speaks from its files, and what is special of its checkpoints."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from clipgguf import ClipGGUFError, MetadataItem, Options, convert, inspect, plan, verify
from tests.family_fixtures import FIXTURES, Fixture, by_folder
from tests.gguf_bytes import rewritten
from tests.gguf_reading import read
from tests.json_files import edit_json
from tests.llama_client import write_tiny_language_model
from tests.llama_speech import CODES, FRAMES, can_speak, speak, spoken_codes
from tests.speech_forward import decoded
from tests.weights import write_weights

FIXTURE = Fixture.read(FIXTURES / "qwen3_tts.json")
FOLDER = "speech_tokenizer"
DECODER = f"{FOLDER}/decoder."
BOOK = f"{DECODER}quantizer.rvq_rest.vq.layers.3._codebook."
WIDTH, NARROW = 96, 64
Arrays = dict[str, NDArray[np.float32]]

speaking = pytest.mark.skipif(not can_speak(), reason="xllamacpp is not installed, or cannot speak (extra: client)")


def quiet() -> Arrays:
    """Return weights with which the sound stays within its bounds, by the names that tables have."""
    rng = np.random.default_rng(0)
    arrays = {name: (rng.standard_normal(shape) / 10).astype(np.float32) for name, shape in FIXTURE.shapes.items()}
    usages = [name for name in arrays if name.endswith("cluster_usage")]
    return arrays | {name: (rng.random(arrays[name].shape) * 3).astype(np.float32) for name in usages}


def write(directory: Path, arrays: Arrays, dtype: str = "F32") -> Path:
    model = FIXTURE.write(directory)
    for folder, shapes in by_folder({name: array.shape for name, array in arrays.items()}).items():
        own = {name: arrays[folder + name] for name in shapes}
        write_weights(model / folder, own, dtype=dtype, shards=1, reverse=False, stem="model")
    return model


@pytest.fixture
def language_model(tmp_path: Path) -> Path:
    path = tmp_path / "llama.gguf"
    write_tiny_language_model(path, WIDTH)
    return path


@speaking
def test_llama_cpp_speaks_what_the_checkpoint_means(language_model: Path, tmp_path: Path) -> None:
    arrays = quiet()
    path = convert(write(tmp_path / "m", arrays), tmp_path / "x.gguf", Options(outtype="f32")).path
    speech = speak(language_model, path, WIDTH)
    assert not speech.errors
    expected = decoded(
        {name.removeprefix(DECODER): array for name, array in arrays.items() if name.startswith(DECODER)},
        np.array(spoken_codes()).reshape(FRAMES, CODES),
    )
    assert expected.std() > 0.1
    # ggml convolves with halves.
    np.testing.assert_allclose(speech.sound, expected, atol=0.01)
    first, *others = speech.codes
    tables = [arrays[f"talker.code_predictor.model.codec_embedding.{number}.weight"] for number in range(CODES - 1)]
    rows = [table[code] for table, code in zip(tables, others, strict=True)]
    embedding = arrays["talker.model.codec_embedding.weight"][first] + sum(rows)
    np.testing.assert_allclose(speech.embedding, embedding, atol=1e-4)


@speaking
@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensor", "kind", "speaks"),
    [
        ("a.gen.wav.pre_conv.weight", "BF16", True),
        ("a.gen.wav.dac.blk.0.conv.weight", "F16", True),
        ("a.gen.wav.up.blk.0.dwconv.weight", "F32", True),
        ("a.gen.wav.quant.rest.codebook.weight", "BF16", True),
        ("a.gen.code.head.weight", "Q8_0", True),
        ("a.gen.wav.dac.entry.bias", "BF16", False),
        ("a.gen.wav.tfm.blk.0.ls1.weight", "BF16", False),
    ],
)
def test_types_with_which_it_speaks(tensor: str, kind: str, speaks: bool, language_model: Path, tmp_path: Path) -> None:
    path = convert(write(tmp_path / "m", quiet()), tmp_path / "x.gguf").path
    changed = rewritten(path, tmp_path / "y.gguf", types={tensor: GGMLQuantizationType[kind]})
    assert inspect(changed).verdicts[-1].reads is speaks
    whole, other = (speak(language_model, file, WIDTH) for file in (path, changed))
    same = not other.errors and np.allclose(other.sound, whole.sound, atol=0.05)
    assert same is speaks


def test_a_file_that_says_that_it_does_not_speak_is_not_run(tmp_path: Path) -> None:
    path = convert(FIXTURE.write(tmp_path / "m"), tmp_path / "x.gguf").path
    key = "clip.has_gen_audio_encoder"
    for value, reason in ((False, f"{key} is false, should be true"), (None, f"it lacks the metadata {key}")):
        items = [] if value is None else [MetadataItem(key, GGUFValueType.BOOL, value)]
        verdict = inspect(rewritten(path, tmp_path / "y.gguf", without=[key], metadata=items)).verdicts[-1]
        assert (verdict.reads, verdict.reasons) == (False, (reason,))


@speaking
def test_a_predictor_as_wide_as_the_talker_has_no_layer_between(language_model: Path, tmp_path: Path) -> None:
    arrays = quiet()
    for name in [name for name in arrays if name.startswith("talker.code_predictor.")]:
        if "small_to_mtp" in name:
            del arrays[name]
            continue
        shape = tuple(
            WIDTH if size == NARROW and axis != _codes_axis(name) else size
            for axis, size in enumerate(arrays[name].shape)
        )
        arrays[name] = np.resize(arrays[name], shape)
    model = write(tmp_path / "m", arrays)
    edit_json(
        model / "config.json",
        lambda config: config["talker_config"]["code_predictor_config"].update(hidden_size=WIDTH),
    )
    path = convert(model, tmp_path / "x.gguf").path
    assert not any("proj_in" in name for name in read(path).tensors if "code" in name)
    assert inspect(path).verdicts[-1].reads
    assert verify(path, model).agrees
    assert not speak(language_model, path, WIDTH).errors


def _codes_axis(name: str) -> int | None:
    """Return the axis of a tensor of the predictor that is as long as the predictor is wide, and is not its width."""
    return 0 if "lm_head" in name or "codec_embedding" in name or "k_proj" in name or "v_proj" in name else None


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_entries_that_were_never_used_and_activations_without_bounds(dtype: str, tmp_path: Path) -> None:
    arrays = quiet()
    arrays[f"{BOOK}cluster_usage"][:2] = 0, -1
    arrays[f"{BOOK}embedding_sum"][:3] = 2.0**-17
    arrays[f"{DECODER}decoder.5.beta"][:3] = -100, 0, 100
    found = read(convert(write(tmp_path / "m", arrays, dtype), tmp_path / "x.gguf", Options(outtype="f32")).path)
    book = np.asarray(found.tensors["a.gen.wav.quant.rest.codebook.weight"].data)[3]
    # As each type has the least usage, of which halves have few digits.
    least = float(np.float16(1e-5)) if dtype == "F16" else 1e-5
    assert book[0] == pytest.approx(2.0**-17 / least, rel=1e-2 if dtype == "BF16" else 1e-3)
    assert (book[0] == book[1]).all()
    snake = np.asarray(found.tensors["a.gen.wav.dac.post_snake.beta"].data)
    wanted = [np.inf if dtype == "F16" else 1e9, 1, 0]
    assert snake[:3] == pytest.approx(wanted, rel=4e-3)


def test_exponentials_of_others_may_be_off_by_a_part_of_themselves(tmp_path: Path) -> None:
    arrays, tensor = quiet(), "a.gen.wav.dac.post_snake.beta"
    arrays[f"{DECODER}decoder.5.beta"][:] = -10
    model = write(tmp_path / "m", arrays)
    path = convert(model, tmp_path / "x.gguf").path
    values = np.array(read(path).tensors[tensor].data)
    assert (values > 20000).all()
    for factor, agrees in ((1 + 3e-7, True), (1 + 1e-6, False), (np.nan, False)):
        changed = (values * factor).astype(np.float32)
        assert (changed != values).all()
        other = rewritten(path, tmp_path / "y.gguf", without=[tensor], tensors={tensor: changed})
        assert verify(other, model).agrees is agrees


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda config: config.pop("speaker_encoder_config"),
            "speaker_encoder_config is missing, should be an object: llama.cpp runs models .* tts_model_type 'base'",
        ),
        (
            lambda config: config["talker_config"]["code_predictor_config"].pop("num_code_groups"),
            "num_code_groups is 32 and rope_theta 1e.06, readers know 16 and 1e.06 only",
        ),
        (
            lambda config: config["talker_config"]["code_predictor_config"].pop("rope_theta"),
            "num_code_groups is 16 and rope_theta 10000, readers know",
        ),
        (
            lambda config: config["speaker_encoder_config"].update(sample_rate=16000),
            "sample_rate is 16000, which readers would compute wrongly; they know 24000",
        ),
    ],
)
def test_what_readers_do_not_compute_is_refused(
    change: Callable[[dict[str, Any]], Any], problem: str, tmp_path: Path
) -> None:
    model = FIXTURE.write(tmp_path / "m")
    edit_json(model / "config.json", change)
    with pytest.raises(ClipGGUFError, match=problem) as error:
        plan(model)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("upsample_rates", [8, 5, 4], r"upsample_rates is \[8, 5, 4\], should be four positive integers"),
        ("upsample_rates", [8, 5, 4, 0], r"upsample_rates is .*, should be four positive integers"),
        ("upsample_rates", [8, 5, 4, 2], r"decoder.4.block.1.conv.weight' has shape \(8, 4, 6\), .* \(8, any, 4\)"),
        ("sliding_window", 250, "sliding_window is 250, which readers would compute wrongly; they know 72"),
        ("upsampling_ratios", [2, 4], r"upsampling_ratios is \[2, 4\], which readers"),
    ],
)
def test_a_decoder_that_readers_do_not_compute_is_refused(key: str, value: Any, problem: str, tmp_path: Path) -> None:
    model = FIXTURE.write(tmp_path / "m")
    edit_json(model / FOLDER / "config.json", lambda config: config["decoder_config"].update({key: value}))
    with pytest.raises(ClipGGUFError, match=problem) as error:
        plan(model)
    assert len(error.value.problems) == 1


def test_the_folder_cannot_be_done_without(tmp_path: Path) -> None:
    model = FIXTURE.write(tmp_path / "m")
    shutil.rmtree(model / FOLDER)
    with pytest.raises(ClipGGUFError, match=r"is missing, .* should be in that folder$"):
        plan(model)


def test_codebooks_of_other_numbers_are_named(tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in FIXTURE.shapes.items() if name != f"{BOOK}cluster_usage"}
    with pytest.raises(ClipGGUFError, match=r"no file has tensor '.*layers\.3\._codebook\.cluster_usage', .* \(64\)"):
        plan(replace(FIXTURE, shapes=shapes).write(tmp_path / "m"))
