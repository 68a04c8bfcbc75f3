"""How many tokens a picture becomes: what inspect says, and how many features the real llama.cpp makes of one."""

import importlib
from pathlib import Path

import pytest

from clipgguf import Options, convert, inspect
from clipgguf.checkpoint.gguf_file import MetadataItem
from tests.clip_checkpoints import write_clip
from tests.conftest import Run
from tests.family_fixtures import FIXTURES, Fixture, fixtures
from tests.gguf_bytes import rewritten
from tests.llama_client import ask, is_available
from tests.llava_checkpoints import VISION_24, Llava
from tests.mmproj_files import mmproj
from tests.readers import uint32

IMAGE = "clip.vision.image_size"
# The sides of fixtures' images that llama.cpp makes larger, since it has a least number of tokens, and larger ones.
SMALL = {"glm4v": 112, "glm5_next": 112, "minimax_m3": 112, "mistral": 112, "pixtral--mistral3": 112}
# The images are of any size, or are no whole number of tokens; DeepSeek-V4's have others among them.
UNTOLD = {"deepseek_v4_vision", "dots3_note", "dots_ocr", "gemma4", "gemma4_unified", "mimo_v2", "youtu_vl"}
# The whole picture, and one tile that has a token after each of two rows.
GRANITE = {"granite4_vision": [4 + 4 + 2]}


@pytest.mark.slow
@pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed (extra: client)")
@pytest.mark.parametrize(
    "family", [f for f in fixtures() if "clip.has_vision_encoder" in f.metadata], ids=lambda fixture: fixture.name
)
def test_llama_cpp_makes_as_many_tokens(family: Fixture, tmp_path: Path) -> None:
    path = convert(family.write(tmp_path / "m"), tmp_path / "x.gguf", Options(vision_only=True)).path
    size = SMALL.get(family.name, SMALL.get(family.module) if family.module == "glm4v" else None)
    if size is not None:
        path = rewritten(path, tmp_path / "y.gguf", metadata=[uint32(IMAGE, size)])
    (tower,) = inspect(path).towers
    if family.module in UNTOLD:
        assert tower.tokens is None
        return
    assert tower.image_size is not None
    result = ask(path, tmp_path, (tower.image_size, tower.image_size))
    assert result.ok, result.errors
    expected = GRANITE.get(family.module, [tower.tokens])
    # The last is the whole picture; what comes before are tiles, which have the same size but for DeepSeek-OCR-2.
    assert result.features[-1:] == expected


@pytest.mark.parametrize(
    ("name", "merge", "tokens"),
    [
        ("qwen2_5_vl", 2, 400),
        ("gemma3", 2, 16),
        ("gemma4--image", 3, None),
        ("minicpmv", None, 8),
        ("pixtral", 1, 19),
        ("pixtral--mistral3", 2, 5),
        ("granite4_vision", 2, 4),
    ],
)
def test_families(name: str, merge: int | None, tokens: int | None, tmp_path: Path) -> None:
    model = Fixture.read(FIXTURES / f"{name}.json").write(tmp_path / "m")
    (tower,) = inspect(convert(model, tmp_path / "x.gguf").path).towers
    assert (tower.merge, tower.tokens) == (merge, tokens)


@pytest.mark.parametrize(("projector", "merge"), [("mlp", 1), ("mlp_norm", 1), ("ldp", 2), ("ldpv2", 2)])
def test_llava(projector: str, merge: int, tmp_path: Path) -> None:
    (tower,) = inspect(mmproj(tmp_path, Llava(vision=VISION_24, projector=projector))).towers
    # The class token is none of them.
    assert (tower.merge, tower.tokens) == (merge, (24 // merge) ** 2)


def test_clip_has_no_language_model(tmp_path: Path) -> None:
    path = convert(write_clip(tmp_path / "m"), tmp_path / "x.gguf", Options(vision_only=True)).path
    assert [(tower.merge, tower.tokens) for tower in inspect(path).towers] == [(None, None)]


@pytest.mark.parametrize(
    "item", [uint32(IMAGE, 0), uint32("clip.vision.patch_size", 0), uint32("clip.vision.projector.scale_factor", 3)]
)
def test_sizes_that_do_not_tell(item: MetadataItem, tmp_path: Path) -> None:
    model = Fixture.read(FIXTURES / "internvl.json").write(tmp_path / "m")
    path = rewritten(convert(model, tmp_path / "x.gguf").path, tmp_path / "y.gguf", metadata=[item])
    assert inspect(path).towers[0].tokens is None


def test_the_table_shows_it(tmp_path: Path, run: Run) -> None:
    model = Fixture.read(FIXTURES / "qwen2_vl.json").write(tmp_path / "m")
    shown = " ".join(run("inspect", convert(model, tmp_path / "x.gguf").path).stdout.split())
    assert "patches to a token 4" in shown
    assert "tokens of an image 400" in shown


@pytest.mark.parametrize("module", sorted({fixture.module for fixture in fixtures()}))
def test_every_family_says_how_many(module: str) -> None:
    family = importlib.import_module(f"clipgguf.families.{module}").FAMILY
    # These two have a number of their own, whatever the patches.
    assert family.merge or "vision" not in family.parts or module in ("gemma3n", "minicpmv")
    assert type(family.merge) is int or not family.merge or any(family.merge == value.name for value in family.values)
