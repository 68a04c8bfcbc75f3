"""Whatever is changed in a checkpoint, reading it ends in success or a ClipGGUFError, soon and in little memory.

CLIPGGUF_FUZZ is how many inputs there are in all, CLIPGGUF_FUZZ_SEED makes others of them: a scheduled run has 20,000
and the date for a seed.
"""

import contextlib
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clipgguf import Options, plan
from clipgguf.errors import ClipGGUFError
from tests.clip_checkpoints import write_clip
from tests.family_fixtures import REPRESENTATIVES
from tests.fuzz import __main__ as fuzzer
from tests.fuzz.mutate import mutate_json
from tests.fuzz.targets import CLIP, FAMILY, LLAVA, TARGETS, Target
from tests.llava_checkpoints import write_hf
from tests.open_clip_checkpoints import write_open_clip
from tests.processes import HANGS_AFTER

COUNT = int(os.environ.get("CLIPGGUF_FUZZ", "2000"))
# Of each kind, without being asked for many.
FEW = 10
SEED = int(os.environ.get("CLIPGGUF_FUZZ_SEED", "0"))


# Of the families' targets those of the representatives; the long run has all.
QUICK = [
    pytest.param(name, marks=pytest.mark.slow)
    if name.startswith(FAMILY) and name.removeprefix(FAMILY) not in REPRESENTATIVES
    else name
    for name in TARGETS
]


@pytest.mark.parametrize("target", QUICK)
def test_a_few_inputs_end_in_success_or_an_error(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In this process, whose memory is not limited.
    monkeypatch.setattr(fuzzer, "limit_memory", lambda: None)
    (tmp_path / target).mkdir()
    assert fuzzer.run(TARGETS[target], tmp_path / target, SEED, range(FEW)) == []


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_input_ends_in_success_or_an_error(target: str, tmp_path: Path) -> None:
    # In a process of its own, which has a limit on memory, and may crash.
    count = math.ceil(COUNT / len(TARGETS))
    command = [sys.executable, "-m", "tests.fuzz", target, str(tmp_path), "--seed", str(SEED), "--count", str(count)]
    result = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=HANGS_AFTER + count
    )
    assert result.returncode == 0, f"ended at the input in {tmp_path / target} (seed {SEED}):\n{result.stderr}"
    findings = [json.loads(line) for line in result.stdout.splitlines()]
    assert not findings, "".join(f"\nseed {f['seed']}, kept in {f['kept']}:\n{f['what']}" for f in findings[:3])


def test_inputs_are_the_same_again() -> None:
    data = b'{"a": [1, {"b": "c"}], "d": {}}'
    inputs = [[mutate_json(data, random.Random(f"{seed}")) for seed in range(200)] for _ in range(2)]
    assert inputs[0] == inputs[1]
    assert len(set(inputs[0])) > 100


def test_what_ends_otherwise_is_found_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attack(directory: Path, output: Path, chance: random.Random) -> None:
        if (directory / "x.json").read_bytes() != b'{"a": 1}':
            raise KeyError("x")

    monkeypatch.setattr(fuzzer, "limit_memory", lambda: None)
    target = Target("broken", ("x.json",), lambda path: (path / "x.json").write_bytes(b'{"a": 1}'), attack)
    (tmp_path / "work").mkdir()
    first, *others = fuzzer.run(target, tmp_path / "work", 7, range(20))
    assert len(others) > 10
    assert first.what.endswith("KeyError: 'x'\n")
    kept = (Path(first.kept) / "x.json").read_bytes()
    assert kept != b'{"a": 1}' == (tmp_path / "work" / "x.json").read_bytes()
    (again,) = fuzzer.run(target, tmp_path / "work", 7, range(first.number, first.number + 1))
    assert again == first
    assert (Path(again.kept) / "x.json").read_bytes() == kept


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not limit private memory")
def test_memory_is_limited() -> None:
    lines = "from tests.fuzz.__main__ import *; limit_memory(); bytearray({} << 20)"
    for size, is_allowed in ((200, True), (260, False)):
        result = subprocess.run(
            [sys.executable, "-c", lines.format(size)], cwd=Path(__file__).parents[1], capture_output=True, text=True
        )
        assert ("MemoryError" not in result.stderr) == is_allowed == (result.returncode == 0)


# Anything that JSON can spell: numbers of any size and none, text that is no Unicode.
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from([10**400, 2**32]),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=3), values, max_size=4),
    max_leaves=8,
)


def with_anything(value: Any) -> st.SearchStrategy[Any]:
    """Return a JSON value like another, in which some parts are anything, or missing."""
    if not isinstance(value, dict) or not value:
        return st.one_of(st.just(value), st.just(value), ANYTHING)
    # Of a long vocabulary the first tokens will do.
    parts = {key: with_anything(part) for key, part in list(value.items())[:24]}
    rest = dict(list(value.items())[24:])
    return st.one_of(
        st.fixed_dictionaries({}, optional=parts).map(lambda chosen: {**value, **chosen}),
        st.fixed_dictionaries({}, optional=parts).map(lambda chosen: {**rest, **chosen}),
        ANYTHING,
    )


MODELS = {
    "config.json": lambda directory: write_clip(directory, CLIP),
    "preprocessor_config.json": lambda directory: write_clip(directory, CLIP),
    "vocab.json": lambda directory: write_clip(directory, CLIP),
    "tokenizer.json": lambda directory: write_clip(directory, CLIP, vocabulary="tokenizer.json"),
    "model.safetensors.index.json": lambda directory: write_clip(directory, CLIP, shards=2),
    "open_clip_config.json": lambda directory: write_open_clip(directory, CLIP),
    "config.json of LLaVA": lambda directory: write_hf(directory, LLAVA),
}


@pytest.mark.parametrize("name", MODELS)
def test_any_json_ends_in_a_plan_or_an_error(name: str, tmp_path: Path) -> None:
    model = MODELS[name](tmp_path / "m")
    path = model / name.partition(" ")[0]
    sound = json.loads(path.read_text(encoding="utf-8"))

    @settings(
        max_examples=COUNT // 40,
        deadline=None,
        derandomize=SEED == 0,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(with_anything(sound), st.booleans())
    @example(sound, False)
    def check(value: object, ignore_unknown: bool) -> None:
        path.write_text(json.dumps(value), encoding="utf-8")
        with contextlib.suppress(ClipGGUFError):
            plan(model, options=Options(ignore_unknown=ignore_unknown))

    check()
    path.write_text(json.dumps(sound), encoding="utf-8")
    plan(model)
