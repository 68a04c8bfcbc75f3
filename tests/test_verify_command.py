"""``clipgguf verify``: what it prints, as text and as JSON, and its exit codes."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType

from clipgguf import Options, convert
from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.checkpoint.gguf_reader import read_gguf
from clipgguf.sources.local import LocalFile
from tests.checkpoints import write_model
from tests.conftest import Run
from tests.gguf_bytes import rewritten
from tests.processes import on_a_terminal
from tests.verifying import changed

T = GGUFValueType

# ---- the command line ------------------------------------------------------------------------------------------------

JSON_KEYS = ["path", "model_dir", "agrees", "found", "outtype", "verdicts", "tensors", "metadata", "warnings", "notes"]
TENSOR_KEYS = [
    "name", "verdict", "type", "shape", "source", "source_type", "expected_shape", "differing", "units",
    "first_difference", "became_infinite", "worst_error", "mean_error", "worst_of_allowed",
]  # fmt: skip
METADATA_KEYS = ["key", "what", "expected", "found", "index"]


def test_the_command(model: Path, tmp_path: Path, run: Run) -> None:
    path = convert(model, tmp_path, options=Options(outtype="q8_0")).path
    result = run("verify", path, model)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{path}: compared with a conversion to q8_0 of CLIPModel in model.safetensors")
    assert lines[1:] == [
        "",
        "93 tensors: 36 rounded, 57 exact; the metadata agree",
        f"agrees: {path} is what a conversion of {model} gives",
    ]
    shown = run("verify", path, model, "--all").stdout.splitlines()
    names = {tensor.name for tensor in read_gguf(LocalFile(path)).tensors}
    assert {line.split()[0] for line in shown if line} >= names
    quiet = run("verify", path, model, "-q", "--threads", "3")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_the_command_says_what_is_wrong(model: Path, tmp_path: Path, run: Run) -> None:
    path = convert(model, tmp_path).path
    tensor = read_gguf(LocalFile(path)).tensors[-1]
    wrong = changed(path, tensor.offset + 3, b"\0")
    mean = ("--image-mean", "0.5", "0.5", "0.5")
    result = run("verify", wrong, model, *mean)
    assert result.returncode == 1
    first, second = result.stderr.splitlines()
    assert first.startswith(f"clipgguf: error: {wrong}: tensor 'text_projection.weight' differs from ")
    assert second.startswith(
        f"clipgguf: error: {wrong}: metadata key 'clip.vision.image_mean' is 0.48145467 at index 0"
    )
    lines = result.stdout.splitlines()
    row = next(line.split() for line in lines if line.startswith("text_projection.weight"))
    assert row[4:9] == ["F32", "F16", "differs", "1", "value"]
    assert lines.index(next(line for line in lines if line.startswith("text_projection.weight"))) == 3
    assert [line.split()[0] for line in lines[2:4]] == ["tensor", "text_projection.weight"]
    assert lines[-2:] == [
        "93 tensors: 1 differs, 35 rounded, 57 exact; 1 difference in the metadata",
        f"differs: {wrong} is not what a conversion of {model} gives",
    ]
    quiet = run("verify", wrong, model, "-q", *mean)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (1, "", result.stderr)


def test_many_faults_are_told_in_part(model: Path, tmp_path: Path, run: Run) -> None:
    path = convert(model, tmp_path).path
    other = write_model(tmp_path / "other", seed=1)
    result = run("verify", path, other, "--json")
    assert result.returncode == 1
    assert len(json.loads(result.stdout)["tensors"]) == 93
    assert len(result.stderr.splitlines()) == 11
    assert result.stderr.splitlines()[-1] == "clipgguf: error: and 83 more like these"
    in_part = run("verify", path, other).stdout
    assert "and 73 more: 73 differs (--all shows them)" in in_part
    assert len(run("verify", path, other, "--all").stdout.splitlines()) == len(in_part.splitlines()) + 73 - 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize(("columns", "headings"), [(80, 6), (200, 9)])
def test_tables_fit_the_terminal(columns: int, headings: int, model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path, options=Options(outtype="q8_0")).path
    tensors = [t for t in read_gguf(LocalFile(path)).tensors if t.name.endswith("blk.1.attn_out.weight")]
    for tensor in tensors:
        changed(path, tensor.offset, b"\1\2\3").rename(path)
    shown = on_a_terminal(columns, "verify", path, model)
    table = shown[shown.index("tensor ") :].split("\n\n")[0].splitlines()
    assert {line.split()[0] for line in table[1:]} == {tensor.name for tensor in tensors}
    assert all(len(line) <= columns for line in table)
    assert len(re.split(r"  +", table[0].strip())) == headings


def test_json(model: Path, tmp_path: Path, run: Run) -> None:
    path = convert(model, tmp_path, options=Options(outtype="q4_0")).path
    names = [tensor.name for tensor in read_gguf(LocalFile(path)).tensors]
    path = rewritten(
        path,
        tmp_path / "x.gguf",
        without=["t.blk.0.ln1.bias", "clip.use_gelu"],
        metadata=[MetadataItem("clip.vision.image_std", T.FLOAT32, [0.5, float("nan"), 0.5])],
        tensors={"extra": np.zeros(3, "f4")},
    )
    result = run("verify", path, model, "--json")
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert list(found) == JSON_KEYS
    assert (found["path"], found["model_dir"], found["agrees"]) == (str(path), str(model), False)
    assert [tensor["name"] for tensor in found["tensors"]] == [*names, "extra"]
    assert all(list(tensor) == TENSOR_KEYS for tensor in found["tensors"])
    assert all(list(difference) == METADATA_KEYS for difference in found["metadata"])
    assert found["verdicts"] == {
        "missing": 1, "unexpected": 1, "wrong shape": 0, "unknown type": 0, "differs": 0, "rounded": 36, "exact": 56,
    }  # fmt: skip
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert by_name["t.blk.0.ln1.bias"]["expected_shape"] == [32]
    assert by_name["extra"] == {
        **dict.fromkeys(TENSOR_KEYS),
        "name": "extra",
        "verdict": "unexpected",
        "type": "F32",
        "shape": [3],
    }
    quantized = by_name["t.blk.1.attn_q.weight"]
    assert (quantized["type"], quantized["source_type"], quantized["units"]) == ("Q4_0", "F32", "blocks")
    assert 0 < quantized["mean_error"] < quantized["worst_error"] < 0.5
    assert {d["key"]: (d["what"], d["found"], d["index"]) for d in found["metadata"]} == {
        "clip.use_gelu": ("missing", None, None),
        "clip.vision.image_std": ("value", 0.5, 0),
    }


@pytest.mark.parametrize(
    "arguments", [["FILE"], ["FILE", "MODEL", "--variant", "a/b"], ["FILE", "MODEL", "--outtype", "f16"]]
)
def test_wrong_usage(arguments: list[str], model: Path, tmp_path: Path, run: Run) -> None:
    places = {"FILE": convert(model, tmp_path).path, "MODEL": model}
    result = run("verify", *[places.get(argument, argument) for argument in arguments])
    assert (result.returncode, result.stdout) == (2, "")
