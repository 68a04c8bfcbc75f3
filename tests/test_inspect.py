"""``clipgguf inspect``: what it says of real files, to people and to machines."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType

from clipgguf import CheckpointError, Inspection, Options, convert, inspect
from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.options import Outtype
from tests.checkpoints import Clip, Text, Vision, write_model
from tests.conftest import Run
from tests.gguf_bytes import array, gguf, key, rewritten, string, tensor
from tests.gguf_reading import read
from tests.llava_checkpoints import VISION_24, Llava
from tests.mmproj_files import mmproj
from tests.other_mmproj import OTHERS, QWEN2_VL, write_other
from tests.processes import on_a_terminal, taking_at_most
from tests.siglip_checkpoints import write_siglip_tower

T = GGUFValueType
TYPE = "clip.projector_type"


def lines(result: "subprocess.CompletedProcess[str]") -> list[list[str]]:
    assert (result.returncode, result.stderr) == (0, "")
    return [line.split() for line in result.stdout.splitlines()]


def test_tables(tmp_path: Path, run: Run) -> None:
    path = convert(write_model(tmp_path / "clip"), tmp_path / "x.gguf").path
    result = run("inspect", path)
    first = result.stdout.splitlines()[0]
    assert first == f"{path}: CLIP model of two towers; 93 tensors, 229.79 kB, GGUF version 3"
    found = lines(result)
    text = "text tower CLIP; width 32, feed-forward 64, heads 4, blocks stored 2, blocks run 2, projection_dim 24, "
    assert [*text.split(), "context", "16,", "vocabulary", "99"] in found
    assert ["clip.text.attention.layer_norm_epsilon", "1e-05"] in found
    assert ["tokenizer.ggml.tokens", "99", "values"] in found
    assert ["clip.vision.image_mean", "[0.48145467,", "0.4578275,", "0.40821072]"] in found
    rows = {line[0]: line[1:] for line in found if line}
    assert rows["v.blk.2.ffn_up.weight"][:4] == ["48", "x", "96", "F16"]
    offsets = {name: f"{t.data_offset:,} {t.n_bytes:,}".split() for name, t in read(path).tensors.items()}
    assert {name: rows[name][-2:] for name in offsets} == offsets
    assert rows["F16"] == ["36", "105,744", "211,488"]
    assert rows["PowerInfer"][:2] == ["no:", "clip.has_text_encoder"]


def test_a_projectors_type_without_a_projector(tmp_path: Path) -> None:
    path = convert(write_siglip_tower(tmp_path / "m"), tmp_path / "x.gguf").path
    told = rewritten(path, tmp_path / "y.gguf", metadata=[MetadataItem(TYPE, T.STRING, "mlp")])
    assert inspect(told).found == inspect(path).found == "vision tower of SigLIP"


@pytest.mark.parametrize(
    ("projector", "kind"), [("mlp", "mlp"), ("mlp_norm", "mlp with LayerNorm"), ("ldp", "ldp"), ("ldpv2", "ldpv2")]
)
def test_projectors(projector: str, kind: str, tmp_path: Path, run: Run) -> None:
    path = mmproj(tmp_path, Llava() if projector == "mlp" else Llava(VISION_24, projector))
    inspection = inspect(path)
    assert inspection.found == f"mmproj for LLaVA: {kind} projector, a CLIP vision tower"
    assert inspection.projector is not None
    assert (inspection.projector.kind, inspection.projector.embedding_length) == (kind, 32)
    (tower,) = inspection.towers
    assert tower.blocks == tower.blocks_stored == tower.blocks_run == (3 if projector == "mlp" else 2)
    found = lines(run("inspect", path))
    assert ["llama.cpp", "yes"] in found
    assert any(line[0] == "projector" and "32" in line for line in found if line)


def test_blocks_that_are_stored_and_run(tmp_path: Path) -> None:
    (tower,) = inspect(mmproj(tmp_path, keep_last_layer=True, feature_layer=-3)).towers
    assert (tower.blocks, tower.blocks_stored, tower.blocks_run) == (3, 3, 2)


@pytest.mark.parametrize("family", OTHERS)
def test_other_families(family: str, tmp_path: Path, run: Run) -> None:
    path = write_other(tmp_path / "x.gguf", OTHERS[family])
    told = " and ".join(f"{key} is {text!r}" for key, text in OTHERS[family].types.items())
    inspection = inspect(path)
    assert inspection.found == f"mmproj of a family that is not known here ({told})"
    tower = inspection.towers[0]
    assert tower.family is None
    assert tower.blocks_run is None
    assert tower.blocks == tower.blocks_stored == 1
    assert inspection.projector is not None
    assert (inspection.projector.kind, inspection.projector.embedding_length) == (None, None)
    assert inspection.projector.projector_type == " and ".join(OTHERS[family].types.values())
    shown = run("inspect", path)
    assert f"llama.cpp not known here: {told}, of which no family is known here".split() in lines(shown)
    assert f"vision tower width {tower.width}, feed-forward".split() in [line[:5] for line in lines(shown)]
    required = run("inspect", path, "--json", "--require", "llama.cpp")
    assert required.returncode == 1
    assert required.stderr.splitlines() == [
        f"clipgguf: error: {path}: whether llama.cpp can read it is not known here: {told}, of which no "
        "family is known here"
    ]
    found = json.loads(required.stdout)
    assert found["readers"]["llama.cpp"]["reads"] is None
    assert "family" not in found["towers"]["vision"]


def test_a_type_decides_before_names(tmp_path: Path) -> None:
    # Qwen2-VL's projector has the names of LLaVA 1.5's; without a type, or with LLaVA's, they are all there is.
    for types in ({}, {"clip.projector_type": "mlp"}, {"clip.vision.projector_type": "mlp"}):
        path = write_other(tmp_path / "x.gguf", QWEN2_VL, types=types)
        assert inspect(path).found == "mmproj for LLaVA: mlp projector, a SigLIP vision tower"
    # The one for the whole file counts, also beside others.
    types = {"clip.vision.projector_type": "mlp", "clip.projector_type": "qwen2vl_merger"}
    assert inspect(write_other(tmp_path / "x.gguf", QWEN2_VL, types=types)).found == "mmproj for Qwen2-VL"
    # A projector for audio is none of LLaVA's, whatever its type.
    types = {"clip.vision.projector_type": "mlp", "clip.audio.projector_type": "mlp"}
    assert "not known here" in inspect(write_other(tmp_path / "x.gguf", QWEN2_VL, types=types)).found


@pytest.mark.parametrize(
    ("options", "found", "towers"),
    [
        ({}, "CLIP model of two towers", ["text", "vision"]),
        ({"text_only": True}, "text tower of CLIP", ["text"]),
        ({"vision_only": True}, "vision tower of CLIP", ["vision"]),
    ],
)
@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_clip_models(options: dict[str, Any], outtype: Outtype, found: str, towers: list[str], tmp_path: Path) -> None:
    clip = Clip(Text(64, 128, 2, 4, 99, 16), Vision(64, 96, 2, 4, 28, 14), 32)
    result = convert(
        write_model(tmp_path / "m", clip), tmp_path / "x.gguf", options=Options(outtype=outtype, **options)
    )
    inspection = inspect(result.path)
    assert inspection.found == found
    assert [tower.name for tower in inspection.towers] == towers
    assert inspection.projector is None
    assert len(inspection.tensors) == sum(element_type.tensors for element_type in inspection.element_types)
    assert sum(element_type.nbytes for element_type in inspection.element_types) == result.bytes_out
    assert outtype.upper() in {element_type.name for element_type in inspection.element_types}
    assert inspection.nbytes == result.path.stat().st_size


def test_json(tmp_path: Path, run: Run) -> None:
    path = convert(write_model(tmp_path / "clip"), tmp_path / "x.gguf").path
    result = run("inspect", path, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert set(found) == {
        "path", "found", "bytes", "version", "alignment", "towers", "projector", "element_types", "metadata", "tensors",
        "readers",
    }  # fmt: skip
    assert (found["path"], found["bytes"], found["alignment"]) == (str(path), path.stat().st_size, 32)
    assert found["towers"]["text"] == {
        "family": "CLIP", "width": 32, "feed_forward": 64, "heads": 4, "projection_dim": 24, "blocks": 2,
        "blocks_stored": 2, "blocks_run": 2, "context_length": 16, "vocabulary": 99,
    }  # fmt: skip
    assert found["towers"]["vision"]["image_size"] == 28
    assert found["projector"] is None
    assert found["element_types"][0] == {"type": "F16", "tensors": 36, "elements": 105_744, "bytes": 211_488}
    metadata = found["metadata"]
    assert list(metadata) == list(read(path).metadata)
    assert metadata["clip.text.block_count"] == {"type": "UINT32", "value": 2}
    assert metadata["clip.use_gelu"] == {"type": "BOOL", "value": False}
    mean = [0.48145467, 0.4578275, 0.40821072]
    assert metadata["clip.vision.image_mean"] == {"type": "FLOAT32", "length": 3, "value": mean}
    tokens = {"type": "STRING", "length": 99, "first": [f"tok{i}</w>" for i in range(8)]}
    assert metadata["tokenizer.ggml.tokens"] == tokens
    name, first = next(iter(read(path).tensors.items()))
    assert found["tensors"][0] == {
        "name": name, "type": "F16", "shape": [99, 32], "offset": first.data_offset, "bytes": 6_336,
    }  # fmt: skip
    assert len(found["tensors"]) == 93
    assert set(found["readers"]) == {"clip.cpp", "PowerInfer", "llama.cpp"}
    verdict = found["readers"]["llama.cpp"]
    assert (verdict["reads"], verdict["reasons"][0]) == (False, "clip.projector_type is missing")
    projector = json.loads(run("inspect", mmproj(tmp_path / "l"), "--json").stdout)["projector"]
    assert projector == {"kind": "mlp", "projector_type": "mlp", "tensors": 4, "embedding_length": 32}


def test_several_files(tmp_path: Path, run: Run) -> None:
    clip = convert(write_model(tmp_path / "clip"), tmp_path / "x.gguf").path
    llava = mmproj(tmp_path / "l")
    result = run("inspect", clip, llava)
    assert (result.returncode, result.stderr) == (0, "")
    first, second = result.stdout.split(f"\n\n{llava}: mmproj for LLaVA")
    assert first == run("inspect", clip, "--no-tensors").stdout
    assert "v.blk.0." not in first + second
    with_tensors = run("inspect", clip, llava, "--tensors").stdout
    assert with_tensors == f"{run('inspect', clip).stdout}\n\n{run('inspect', llava).stdout}"
    objects = json.loads(run("inspect", clip, llava, "--json").stdout)
    assert objects == [json.loads(run("inspect", path, "--json").stdout) for path in (clip, llava)]
    short = json.loads(run("inspect", clip, "--json", "--no-tensors").stdout)
    assert short == {key: value for key, value in objects[0].items() if key != "tensors"}


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_tables_fit_the_terminal(tmp_path: Path) -> None:
    clip = convert(write_model(tmp_path / "clip"), tmp_path / "x.gguf").path
    narrow = on_a_terminal(80, "inspect", clip)
    assert all(len(line) <= 80 for line in narrow[narrow.index("part ") :].splitlines())
    # Nothing but prose and paths needs a second line.
    rows = [line for line in narrow.splitlines() if line.startswith(("v.", "t.", "clip.")) and "no:" not in line]
    assert len(rows) == len([line for line in on_a_terminal(200, "inspect", clip).splitlines() if line in rows])


def test_a_bad_file_among_good_ones(tmp_path: Path, run: Run) -> None:
    good = convert(write_model(tmp_path / "clip"), tmp_path / "x.gguf").path
    bad = tmp_path / "none.gguf"
    result = run("inspect", bad, good, "--no-tensors", "--require", "powerinfer")
    assert result.returncode == 1
    assert result.stderr.startswith(f"clipgguf: error: {bad}: is missing\nclipgguf: error: {good}: PowerInfer cannot")
    assert f"{good}: CLIP model of two towers" in result.stdout
    found = run("inspect", bad, good, "--json")
    assert (found.returncode, [each["path"] for each in json.loads(found.stdout)]) == (1, [str(good)])


def test_names_from_the_file_do_not_reach_the_terminal_raw(tmp_path: Path, run: Run) -> None:
    nasty = "\x1b[31mred\x07\n\u202e"
    path = tmp_path / "x.gguf"
    entries = [key(nasty, T.STRING, string(nasty)), array("tokens", T.STRING, 1, string(nasty))]
    entries += [key("general.architecture", T.STRING, string(nasty))]
    path.write_bytes(gguf(entries, [tensor(nasty)], bytes(16)))
    for arguments in ([], ["--json"]):
        shown = run("inspect", path, *arguments, "--require", "llama.cpp")
        assert shown.returncode == 1
        assert all(c.isprintable() or c == "\n" for c in shown.stdout + shown.stderr)
        assert "[31mred" in shown.stdout
    assert nasty in json.loads(shown.stdout)["metadata"]
    (tmp_path / "y.gguf").write_bytes(gguf([key(nasty, 99, b"")]))
    refused = run("inspect", tmp_path / "y.gguf")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert len(refused.stderr.splitlines()) == 1
    assert all(c.isprintable() or c == "\n" for c in refused.stderr)


def test_require(tmp_path: Path, run: Run) -> None:
    path = mmproj(tmp_path)
    good = run("inspect", path, "--require", "llama.cpp")
    assert (good.returncode, good.stderr) == (0, "")
    old = rewritten(path, tmp_path / "old.gguf", without=["clip.projector_type", "clip.vision.feature_layer"])
    assert run("inspect", old).returncode == 0
    bad = run("inspect", old, "--require", "llama.cpp")
    assert bad.returncode == 1
    assert bad.stderr.splitlines() == [
        f"clipgguf: error: {old}: llama.cpp cannot read it: clip.projector_type is missing; clipgguf upgrade adds it"
    ]
    assert bad.stdout == run("inspect", old).stdout
    both = run("inspect", old, "--json", "--require", "powerinfer", "--require", "clip.cpp")
    assert both.returncode == 1
    assert {line.split(": ")[3] for line in both.stderr.splitlines()} == {
        "whether PowerInfer can read it is not known here", "clip.cpp cannot read it",
    }  # fmt: skip
    assert json.loads(both.stdout)["readers"]["PowerInfer"]["reads"] is None
    run("upgrade", old, "--feature-layer", 3)
    assert run("inspect", old, "--require", "llama.cpp").returncode == 0


def test_wrong_usage_and_wrong_files(tmp_path: Path, run: Run) -> None:
    assert run("inspect").returncode == 2
    wrong = run("inspect", "x.gguf", "--require", "ollama")
    assert wrong.returncode == 2
    assert "ollama" in wrong.stderr
    (tmp_path / "no.gguf").write_bytes(b"GGML")
    for path, words in (
        (tmp_path / "no.gguf", "no GGUF file"),
        (tmp_path / "none.gguf", "missing"),
        (tmp_path, "file"),
    ):
        result = run("inspect", path)
        assert (result.returncode, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"clipgguf: error: {path}: ")
        assert words in line


def test_library(tmp_path: Path) -> None:
    path = mmproj(tmp_path)
    inspection = inspect(os.fspath(path))
    assert isinstance(inspection, Inspection)
    assert [(v.reader, v.reads) for v in inspection.verdicts] == [
        ("clip.cpp", False), ("PowerInfer", False), ("llama.cpp", True),
    ]  # fmt: skip
    assert {item.key: item.value for item in inspection.metadata}["clip.vision.feature_layer"] == (3,)
    with pytest.raises(CheckpointError, match="missing"):
        inspect(tmp_path / "none.gguf")


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes on Windows unless they are asked to")
def test_ten_gigabytes_at_once(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "big.gguf"
    path.write_bytes(gguf([key("general.architecture", T.STRING, string("clip"))], [tensor("v.x", (10**9, 5), 1)]))
    os.truncate(path, path.stat().st_size + 10**10)
    with taking_at_most(2):
        result = run("inspect", path)
    assert result.stdout.startswith(f"{path}: vision tower of SigLIP; 1 tensors, 10.00 GB")
