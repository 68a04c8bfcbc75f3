"""Wrong usage: exit code 2 on the command line, ValueError in Python, nothing written; and what --output can mean."""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipgguf import Options, convert, inspect, verify
from tests.checkpoints import write_model
from tests.clip_checkpoints import write_clip
from tests.conftest import Run
from tests.gguf_reading import read
from tests.llava_checkpoints import Llava, write_hf, write_projector
from tests.open_clip_checkpoints import write_open_clip

NOWHERE = Path("/nowhere")


def _clip(directory: Path) -> tuple[Path, dict[str, Any]]:
    return write_model(directory / "m"), {}


def _llava(directory: Path) -> tuple[Path, dict[str, Any]]:
    return write_hf(directory / "m", Llava()), {}


def _clip_and_projector(directory: Path) -> tuple[Path, dict[str, Any]]:
    projector = write_projector(directory / "llava.projector", Llava())
    return write_clip(directory / "m", Llava().clip), {"llava_projector": projector}


def _weights(directory: Path) -> tuple[Path, dict[str, Any]]:
    return write_model(directory / "m") / "model.safetensors", {}


def _open_clip(directory: Path) -> tuple[Path, dict[str, Any]]:
    return write_open_clip(directory / "m"), {}


Written = Callable[[Path], tuple[Path, dict[str, Any]]]
# What does not apply to what, and the words that say to what it does.
UNUSED: list[tuple[Written, dict[str, Any], str]] = [
    (_clip, {"feature_layer": 99}, "mmproj files"),
    (_clip, {"keep_last_layer": True}, "mmproj files"),
    (_clip, {"projector_type": "ldp"}, "mmproj files"),
    (_clip, {"vision_config": NOWHERE}, "mmproj files"),
    (_clip, {"vision_tower": NOWHERE}, "LLaVA checkpoints"),
    (_clip, {"vision_only": True, "vocab": NOWHERE}, "a text tower"),
    (_clip, {"text_only": True, "image_mean": (0.5, 0.5, 0.5)}, "a vision tower"),
    (_clip, {"text_only": True, "image_std": (0.5, 0.5, 0.5)}, "a vision tower"),
    (_llava, {"vocab": NOWHERE}, "a text tower"),
    (_clip_and_projector, {"vision_tower": NOWHERE}, "LLaVA checkpoints"),
    (_open_clip, {"llava_projector": NOWHERE}, "transformers' layout"),
    (_open_clip, {"feature_layer": -2}, "mmproj files"),
    (_weights, {"variant": "fp16"}, "directories"),
    (_clip, {"fetch_tower": True}, "LLaVA checkpoints"),
    (_clip_and_projector, {"fetch_tower": True}, "LLaVA checkpoints"),
]


def spelled(options: dict[str, Any]) -> list[str]:
    """Return options of ``convert`` as the command line has them."""
    words = []
    for name, value in options.items():
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words += map(str, value) if isinstance(value, tuple) else [str(value)]
    return words


@pytest.mark.parametrize(("write", "options", "words"), UNUSED)
def test_options_that_do_not_apply_are_refused(
    write: Written, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    model, others = write(tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        convert(model, tmp_path / "out", options=Options(**others, **options))
    assert list(options)[-1] in str(caught.value)
    assert str(model) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [0, 5, 9, 12])
def test_and_so_they_are_on_the_command_line(number: int, tmp_path: Path, run: Run) -> None:
    write, options, words = UNUSED[number]
    model, others = write(tmp_path)
    for dry_run in ((), ("--dry-run",)):
        result = run(model, "-o", "out", *spelled({**others, **options}), *dry_run)
        assert (result.returncode, result.stdout) == (2, "")
        assert f"Error: {spelled(options)[-2]} is for " in result.stderr
        assert words in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "work/out").exists()


def test_several_that_do_not_apply_are_told_together(model: Path, run: Run) -> None:
    result = run(model, "--keep-last-layer", "--projector-type", "LDP")
    assert result.returncode == 2
    assert "Error: --keep-last-layer and --projector-type are for LLaVA's mmproj files" in result.stderr


def test_verify_refuses_them_too(model: Path, tmp_path: Path, run: Run) -> None:
    path = convert(model, tmp_path, options=Options(vision_only=True)).path
    with pytest.raises(ValueError, match="vocab is for files with a text tower"):
        verify(path, model, options=Options(vocab=NOWHERE))
    with pytest.raises(ValueError, match="vision_tower is for LLaVA checkpoints"):
        verify(path, model, options=Options(vision_tower=NOWHERE))
    result = run("verify", path, model, "--projector-type", "mlp")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--projector-type is for LLaVA's mmproj files" in result.stderr


def test_every_option_says_what_it_is_and_what_it_is_for() -> None:
    metadata = {field.name: field.metadata for field in dataclasses.fields(Options)}
    assert all(about["text"].endswith((".", "]")) for about in metadata.values())
    everywhere = {
        "name",
        "metadata",
        "model_card",
        "text_only",
        "vision_only",
        "audio_only",
        "outtype",
        "ignore_unknown",
    }
    assert {name for name, about in metadata.items() if not about["only_for"]} == everywhere


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text-only", "--vision-only", "MODEL"], "--text-only and --vision-only exclude each other"),
        (["MODEL", "--fetch-tower", "--vision-tower", "x"], "--vision-tower and --fetch-tower exclude each other"),
        (["MODEL", "--use-f32", "--outtype", "q8_0"], "--use-f32 and --outtype exclude each other"),
        (["MODEL", "--variant", "a/b"], "--variant is 'a/b', should be a word such as 'fp16'"),
        (["MODEL", "--vocab", ""], "--vocab is empty"),
        (["MODEL", "--vocab="], "--vocab is empty"),
        (["MODEL", "--name", ""], "--name is empty"),
        ([""], "an argument is empty"),
        (["MODEL", "-o", ""], "-o is empty"),
        (["MODEL", "-o", "-"], "--output is '-', but a GGUF file is never written to standard output"),
        (["MODEL", "-o", "foo.bin"], "--output is foo.bin, which is no directory and does not end in .gguf"),
        (["MODEL", "-o", "out/{nme}.gguf"], "--output has {nme}, known are {name} and {outtype}"),
        (["MODEL", "-o", "out/{name!r}.gguf"], "--output has {name}, known are"),
        (["MODEL", "-o", "out/{name.gguf"], "--output has a single brace"),
        (["convrt", "MODEL"], "did you mean 'convert'?"),
        (["Verfy"], "did you mean 'verify'?"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], words: str, model: Path, tmp_path: Path, run: Run) -> None:
    result = run(*[model if argument == "MODEL" else argument for argument in arguments])
    assert (result.returncode, result.stdout) == (2, "")
    assert f"Error: {words}" in result.stderr or words in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "work").iterdir()) == []
    assert not list(model.glob("*.gguf"))


def test_a_path_that_is_called_nearly_like_a_command(tmp_path: Path, run: Run) -> None:
    write_model(tmp_path / "work" / "convrt")
    assert run("convrt", "-q").stdout == f"{Path('convrt', 'model-f16.gguf')}\n"
    result = run("clip-vit-base-patch32")
    assert (result.returncode, "did you mean" in result.stderr) == (1, False)


@pytest.mark.parametrize("output", ["", "-", "foo.bin", "a\0b", "{nme}/"] + ["\ud800"] * (sys.platform != "win32"))
def test_outputs_that_are_none_in_python(output: str, model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"^output "):
        convert(model, output)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("output", "path"),
    [
        ("FOO.GGUF", "FOO.GGUF"),
        ("new.bin/", "new.bin/model-f16.gguf"),
        ("old.bin", "old.bin/model-f16.gguf"),
        ("llava-v1.5", "llava-v1.5/model-f16.gguf"),
        ("old.gguf", "old.gguf/model-f16.gguf"),
        ("new.gguf/", "new.gguf/model-f16.gguf"),
        ("out/{name}-{outtype}.gguf", "out/tiny-clip-f16.gguf"),
        ("{outtype}/{name}", "f16/tiny-clip/model-f16.gguf"),
        ("{{name}}.gguf", "{name}.gguf"),
    ],
)
def test_what_an_output_means(
    output: str, path: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.bin").mkdir()
    (tmp_path / "old.gguf").mkdir()
    monkeypatch.chdir(tmp_path)
    assert convert(model, output).path == Path(path)
    assert Path(path).is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="FIFOs and devices are POSIX's")
def test_outputs_that_are_no_files(model: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "pipes").mkdir()
    for name in ("pipe", "pipe.gguf", "pipes/model-f16.gguf"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "file.txt").write_bytes(b"kept")
    for output in ("pipe", "pipe.gguf", "pipes", "file.txt", "/dev/null"):
        result = run(model, "-o", tmp_path / output)
        assert (result.returncode, result.stdout) == (2, ""), output
        assert f"Error: --output is {tmp_path / output}" in result.stderr
    assert (tmp_path / "file.txt").read_bytes() == b"kept"
    assert (tmp_path / "pipe.gguf").is_fifo()


def test_upgrade_takes_outputs_by_the_same_rule_and_braces_as_they_are(tmp_path: Path, run: Run) -> None:
    path = convert(write_hf(tmp_path / "m", Llava()), tmp_path / "x.gguf").path
    for output in ("-", "foo.bin"):
        result = run("upgrade", path, "-o", output)
        assert (result.returncode, result.stdout) == (2, "")
        assert f"Error: --output is {output!r}" in result.stderr or f"--output is {output}" in result.stderr
    assert run("upgrade", path, "-o", "{x}.GGUF").stdout == "{x}.GGUF\n"


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("openai/clip vit", "openai-clip-vit-f16.gguf"),
        ("..", "model-f16.gguf"),
        ("/", "model-f16.gguf"),
        ("CLIP ü*?:|\n", "CLIP-ü-f16.gguf"),
        ("v1.5", "v1.5-f16.gguf"),
        ("x" * 1000, f"{'x' * 150}-f16.gguf"),
    ],
)
def test_name(name: str, file: str, model: Path, tmp_path: Path) -> None:
    result = convert(model, os.fspath(tmp_path / "out" / "{name}-{outtype}.gguf"), options=Options(name=name))
    assert result.path == tmp_path / "out" / file
    assert read(result.path).metadata["general.name"] == name


def test_the_name_alone_differs(model: Path, tmp_path: Path) -> None:
    named, plain = (convert(model, tmp_path / f"{n}.gguf", options=Options(name=n)).path for n in ("other", None))
    items, others = ({item.key: item.value for item in inspect(path).metadata} for path in (named, plain))
    assert items == {**others, "general.name": "other"}
    result = verify(named, model)
    assert result.agrees
    assert result.notes == ("metadata key 'general.name' is 'other', should be 'tiny-clip'",)


def test_many_models_into_one_directory(tmp_path: Path, run: Run) -> None:
    for name in ("a", "b.c"):
        write_model(tmp_path / name)
        result = run(tmp_path / name, "-o", "out/{name}-{outtype}.gguf", "--outtype", "Q8_0", "-q")
        assert (result.returncode, result.stdout) == (0, f"{Path('out', f'{name}-q8_0.gguf')}\n")
    assert sorted(path.name for path in (tmp_path / "work/out").iterdir()) == ["a-q8_0.gguf", "b.c-q8_0.gguf"]


def test_auto_is_resolved_in_the_files_name(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", dtype="BF16")
    result = convert(model, os.fspath(tmp_path / "{outtype}.gguf"), options=Options(outtype="AUTO"))  # type: ignore[arg-type]
    assert (Path(result.path).name, result.outtype) == ("bf16.gguf", "bf16")


def test_the_parent_directory_has_a_name(model: Path, run: Run, tmp_path: Path) -> None:
    (model / "sub").mkdir()
    expected = convert(model, tmp_path / "x.gguf").path.read_bytes()
    assert run("..", "-o", "{name}.gguf", cwd=model / "sub").returncode == 0
    assert (model / "sub" / "tiny-clip.gguf").read_bytes() == expected
