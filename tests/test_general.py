"""The metadata ``general.*`` of mmproj files: those of llama.cpp's converter, whatever a model card has."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, Metadata, size_label

from clipgguf.errors import ConfigError
from clipgguf.general import experts_in, general_metadata
from clipgguf.model_card import read_model_card
from clipgguf.sources.local import LocalFolder
from tests.json_files import write_json

CARD = """\
---
license: other
license_name: qwen-research
license_link: https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct/blob/main/LICENSE
language:
- en
- no
pipeline_tag: image-text-to-text
tags:
\t- multimodal
base_model:
- Qwen/Qwen2.5-VL-7B-Instruct
- https://huggingface.co/google/siglip-so400m
datasets: HuggingFaceM4/the_cauldron
model_name: Some Name
version: 1.5
---
# The text
"""
NAMES = ("Qwen2.5-VL-7B-Instruct", "gemma-3-4b-it", "pixtral-12b", "InternVL3-8B", "m", "SmolVLM2-2.2B-Instruct", "a b")


def written(directory: Path, name: str | None = None, given: Any = None, elements: int = 676_550_144) -> dict[str, Any]:
    config = json.loads((directory / "config.json").read_text())
    file = None
    if given is not None:
        write_json(directory / "given.json", given)
        file = LocalFolder(directory).file("given.json")
    items, warnings = general_metadata(read_model_card(LocalFolder(directory), config, name, file), elements)
    assert not warnings
    return {item.key: item.value for item in items}


def reference(directory: Path, elements: int = 676_550_144) -> dict[str, Any]:
    """Return what gguf's own loading from a directory gives, with what llama.cpp's converter does after it."""
    metadata = Metadata.load(None, directory, None, elements)
    metadata.name = metadata.name or directory.name
    metadata.size_label = metadata.size_label or size_label(elements, 0, 0, 0)
    writer = GGUFWriter(None, "clip")
    metadata.set_gguf_meta_model(writer)
    return {key: entry.value for key, entry in writer.kv_data[0].items() if key != "general.architecture"}


def model(directory: Path, name: str, card: str | None = None, config: Any = None, generation: Any = None) -> Path:
    path = directory / name
    path.mkdir()
    write_json(path / "config.json", config or {})
    if generation is not None:
        write_json(path / "generation_config.json", generation)
    if card is not None:
        (path / "README.md").write_text(card)
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path", [None, "Qwen/Qwen2-VL-2B-Instruct", "/home/me/models/x-7B", ""])
def test_names_are_told_apart_as_llama_cpp_does(name: str, path: str | None, tmp_path: Path) -> None:
    directory = model(tmp_path, name, config={"_name_or_path": path} if path else {})
    assert written(directory) == reference(directory)


def test_the_model_card(tmp_path: Path) -> None:
    directory = model(tmp_path, "Qwen2.5-VL-7B-Instruct", CARD, generation={"temperature": 0.1, "top_k": 1})
    expected = {key: str(value) if key == "general.version" else value for key, value in reference(directory).items()}
    found = written(directory)
    assert found == expected
    assert found["general.languages"] == ["en", "no"]
    assert found["general.base_model.1.organization"] == "Google"
    assert found["general.sampling.temp"] == 0.1
    assert list(found) == list(expected)


def test_what_is_given_counts(tmp_path: Path) -> None:
    directory = model(tmp_path, "Qwen2.5-VL-7B-Instruct", CARD)
    given = {"general.author": "Me", "general.license": "mit", "general.source.url": "https://x", "general.name": "G"}
    found = written(directory, given=given)
    assert {key: found[key] for key in given} == given
    assert written(directory, name="N", given=given)["general.name"] == "N"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"clip.use_gelu": True}, "'clip.use_gelu' is no key of general metadata, such as 'general.author'"),
        ({"general.auhtor": "Me"}, "'general.auhtor' is no key of general metadata"),
        ({"general.author": ["Me"]}, r"general.author is \['Me'\], should be text"),
        ({"general.sampling.top_k": "many"}, "general.sampling.top_k is 'many', should be a whole number"),
    ],
)
def test_what_is_given_and_wrong(given: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"given.json: {words}"):
        written(model(tmp_path, "m"), given=given)


ODD_CARDS: dict[str, str | bytes] = {
    "no YAML": "---\na: [\n---\n",
    "no end": "---\nname: x\n",
    "a list": "---\n- name\n---\n",
    "a date that is none": "---\nname: 2024-99-99\n---\n",
    "deep": "---\na: " + "[" * 5000 + "\n---\n",
    "an object": "---\nname: {a: 1}\n---\n",
    "numbers in lists": "---\nbase_model: [1, 2]\ntags: [1, [2], {a: b}]\nlanguage: {a: b}\n---\n",
    "laughs": "---\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(9))
    + "tags: *a8\n---\n",
    "no text": b"---\nname: \xff\xfe\n---\n",
    "license": "---\nlicense: [mit, 7]\n---\n",
    "base": "---\nbase_model: {a: b}\ndatasets: [{name: [1]}]\n---\n",
}


@pytest.mark.parametrize("card", ODD_CARDS)
def test_odd_cards_give_the_rest(card: str, tmp_path: Path) -> None:
    directory = model(tmp_path, "x-7B-Instruct")
    text = ODD_CARDS[card]
    (directory / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    items, _ = general_metadata(read_model_card(LocalFolder(directory), {}, None, None), 7_000_000_000)
    found = {item.key: item.value for item in items}
    assert found["general.finetune"] == "Instruct"
    assert isinstance(found["general.name"], str)
    for value in found.values():
        assert all(isinstance(part, str | int | float) for part in (value if isinstance(value, list) else [value]))


def test_experts_are_counted_as_gguf_counts_them() -> None:
    shapes = {
        "v.blk.0.ffn_up_exps.weight": (4, 48, 64),
        "v.blk.1.ffn_up_exps.weight": (3, 48, 64),
        "v.blk.2.ffn_up_exps.weight": (4, 48, 64),
        "v.blk.0.ffn_gate_inp.weight": (4, 64),
        "v.odd_exps.weight": (7, 5),
        "a.post_ln.weight": (64,),
    }
    writer = GGUFWriter(None, "clip")
    for name, shape in shapes.items():
        writer.add_tensor_info(name, shape, np.dtype("float32"), 4 * math.prod(shape))
    elements, *theirs = writer.get_total_parameter_count()
    assert (elements, *experts_in(shapes.items())) == (elements, *theirs)
    assert theirs[2] == 3
