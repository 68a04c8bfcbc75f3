"""What is attacked: small checkpoints of every layout, which of their files are changed, and what is done with them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from clipgguf import Options, convert, inspect, plan, upgrade, verify
from clipgguf.checkpoint.gguf_reader import read_gguf
from clipgguf.options import Outtype
from clipgguf.sources.local import LocalFile
from clipgguf.writer import write_plan
from tests import torch_bytes
from tests.checkpoints import Clip, Text, Vision
from tests.clip_checkpoints import write_clip, write_tower
from tests.family_fixtures import Fixture, by_folder, fixtures
from tests.fuzz.mutate import Chance, Mutate, mutate_gguf, mutate_json, mutate_safetensors, mutate_tensors, mutate_torch
from tests.gguf_bytes import rewritten
from tests.json_files import write_json
from tests.llava_checkpoints import Llava, write_hf, write_original, write_projector, write_vision_config
from tests.mmproj_files import NEW_KEYS
from tests.open_clip_checkpoints import write_open_clip
from tests.siglip_checkpoints import write_siglip_tower
from tests.weights import arrays_of, write_sparse_safetensors

VISION = Vision(32, 64, 2, 2, image_size=8, patch_size=4)
CLIP = Clip(Text(32, 32, 1, 2, vocab_size=11, max_position_embeddings=4), VISION, projection_dim=8)
LLAVA = Llava(VISION, text_width=32, has_newline=True)
# mm_vision_tower's sizes are known for a few published towers only, which are large.
LLAVA_15 = Llava(VISION, text_width=32)

# The beginning of the names of families' targets.
FAMILY = "family-"
_KINDS: Mapping[str, Mutate] = {
    ".json": mutate_json,
    ".safetensors": mutate_safetensors,
    ".gguf": mutate_gguf,
    ".bin": mutate_torch,
    ".projector": mutate_torch,
}


@dataclass(frozen=True)
class Target:
    """A directory that ``build`` fills, of which ``files`` are changed before ``attack`` is made on it.

    ``attack(directory, output, chance)`` returns in success or raises; ``chance`` is for options.
    """

    name: str
    files: tuple[str, ...]
    build: Callable[[Path], object]
    attack: Callable[[Path, Path, Chance], None]

    def mutate(self, name: str, data: bytes, chance: Chance) -> bytes:
        """Change one of the files."""
        if self.name.startswith(FAMILY) and name.endswith(".safetensors") and chance.random() < 0.8:
            return mutate_tensors(data, chance)
        return _KINDS[Path(name).suffix](data, chance)


def _convert(directory: Path, output: Path, chance: Chance, is_mmproj: bool, **options: Path) -> None:
    towers = "both" if is_mmproj else chance.choice(("both", "both", "text", "vision"))
    asked = Options(
        text_only=towers == "text",
        vision_only=towers == "vision",
        outtype=chance.choice(get_args(Outtype)),
        ignore_unknown=chance.random() < 0.5,
        keep_last_layer=chance.random() < 0.2 and is_mmproj,
        llava_projector=options.get("llava_projector"),
        vision_tower=options.get("vision_tower"),
        vision_config=options.get("vision_config"),
    )
    path = output / "out.gguf"
    write_plan(plan(directory / "model", asked), path, threads=1)
    # What we write, we can read.
    read_gguf(LocalFile(path))


def _family(fixture: Fixture) -> Target:
    """Return the target of a family's fixture, whose data are one hole: the header is what is changed."""
    weights = "model.safetensors" if fixture.config_name == "config.json" else "consolidated.safetensors"

    def build(directory: Path) -> None:
        for folder, shapes in folders.items():
            (directory / "model" / folder).mkdir(exist_ok=True)
            write_sparse_safetensors(directory / "model" / folder / weights, shapes)
        for name, value in fixture.files.items():
            write_json(directory / "model" / name, value)

    folders = by_folder(fixture.shapes)
    return Target(
        f"{FAMILY}{fixture.name}",
        tuple(f"model/{name}" for name in (*fixture.files, *(folder + weights for folder in folders))),
        build,
        _convert_and_verify,
    )


def _convert_and_verify(directory: Path, output: Path, chance: Chance) -> None:
    asked = Options(outtype=chance.choice(get_args(Outtype)), ignore_unknown=chance.random() < 0.5)
    made = plan(directory / "model", asked)
    path = output / "out.gguf"
    write_plan(made, path, threads=1)
    found = verify(path, directory / "model", options=Options(ignore_unknown=asked.ignore_unknown), threads=1)
    assert found.agrees, found.problems
    assert inspect(path).towers


def _convert_with(*, is_mmproj: bool = False, **options: str) -> Callable[[Path, Path, Chance], None]:
    return lambda directory, output, chance: _convert(
        directory, output, chance, is_mmproj, **{option: directory / name for option, name in options.items()}
    )


def _stream(model: Path) -> None:
    """Write weights in the format of torch before 1.6."""
    arrays = arrays_of(CLIP.shapes())
    records, storages = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        records[name] = torch_bytes.tensor(torch_bytes.storage(str(key), array.size), 0, array.shape, strides)
        storages[str(key)] = (array.size, array.astype("<f4").tobytes())
    write_clip(model, CLIP)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(torch_bytes.stream(torch_bytes.mapping(records), storages))


def _gguf(directory: Path) -> None:
    """Write an mmproj file as a script of before would have."""
    write_original(directory / "model", LLAVA_15)
    write_clip(directory / "tower", LLAVA_15.clip)
    new = convert(directory / "model", directory / "new.gguf", options=Options(vision_tower=directory / "tower")).path
    rewritten(new, directory / "old.gguf", without=NEW_KEYS)


def _upgrade(directory: Path, output: Path, chance: Chance) -> None:
    read_gguf(LocalFile(upgrade(directory / "old.gguf", output / "out.gguf", feature_layer=1).path))


def _inspect(directory: Path, output: Path, chance: Chance) -> None:
    assert inspect(directory / "new.gguf").verdicts


def _verify(directory: Path, output: Path, chance: Chance) -> None:
    verification = verify(
        directory / "new.gguf", directory / "model", options=Options(vision_tower=directory / "tower"), threads=1
    )
    assert verification.agrees == (not verification.problems)


TARGETS = {
    target.name: target
    for target in (
        Target(
            "clip",
            ("model/config.json", "model/preprocessor_config.json", "model/vocab.json", "model/model.safetensors"),
            lambda directory: write_clip(directory / "model", CLIP),
            _convert_with(),
        ),
        Target(
            "shards",
            ("model/model.safetensors.index.json", "model/model-00002-of-00003.safetensors"),
            lambda directory: write_clip(directory / "model", CLIP, shards=3),
            _convert_with(),
        ),
        Target(
            "tokenizer",
            ("model/tokenizer.json", "model/processor_config.json"),
            lambda directory: write_clip(
                directory / "model", CLIP, vocabulary="tokenizer.json", processor="processor_config.json"
            ),
            _convert_with(),
        ),
        Target(
            "torch",
            ("model/pytorch_model.bin",),
            lambda directory: write_clip(directory / "model", CLIP, suffix=".bin"),
            _convert_with(),
        ),
        Target(
            "torch-shards",
            ("model/pytorch_model.bin.index.json", "model/pytorch_model-00002-of-00002.bin"),
            lambda directory: write_clip(directory / "model", CLIP, suffix=".bin", shards=2, dtype="F16"),
            _convert_with(),
        ),
        Target(
            "torch-stream",
            ("model/pytorch_model.bin",),
            lambda directory: _stream(directory / "model"),
            _convert_with(),
        ),
        Target(
            "projector",
            ("llava.projector", "model/config.json"),
            lambda directory: (
                write_clip(directory / "model", LLAVA.clip),
                write_projector(directory / "llava.projector", LLAVA),
            ),
            _convert_with(is_mmproj=True, llava_projector="llava.projector"),
        ),
        Target(
            "open-clip",
            ("model/open_clip_config.json", "model/open_clip_model.safetensors"),
            lambda directory: write_open_clip(directory / "model", CLIP),
            _convert_with(),
        ),
        Target(
            "siglip",
            ("model/config.json", "model/model.safetensors"),
            lambda directory: write_siglip_tower(directory / "model", VISION),
            _convert_with(),
        ),
        Target(
            "llava-hf",
            ("model/config.json", "model/preprocessor_config.json", "model/model.safetensors"),
            lambda directory: write_hf(directory / "model", LLAVA),
            _convert_with(is_mmproj=True),
        ),
        Target(
            "llava-original",
            ("model/config.json", "vision.json", "model/pytorch_model.bin"),
            lambda directory: (
                write_original(directory / "model", LLAVA, tower="inside", suffix=".bin"),
                write_vision_config(directory / "vision.json", LLAVA),
            ),
            _convert_with(is_mmproj=True, vision_config="vision.json"),
        ),
        Target(
            "llava-tower",
            ("model/config.json", "tower/config.json", "tower/model.safetensors"),
            lambda directory: (
                write_original(directory / "model", LLAVA),
                write_tower(directory / "tower", "vision", LLAVA.clip),
            ),
            _convert_with(is_mmproj=True, vision_tower="tower"),
        ),
        *map(_family, fixtures()),
        Target("upgrade", ("old.gguf",), _gguf, _upgrade),
        Target("inspect", ("new.gguf",), _gguf, _inspect),
        Target("verify", ("new.gguf", "model/config.json"), _gguf, _verify),
    )
}
