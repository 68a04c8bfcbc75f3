"""Files from before are mended: two keys more, and not a byte of a tensor less."""

import struct
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from clipgguf import CheckpointError, convert, upgrade
from clipgguf.checkpoint.gguf_file import MetadataItem, read_gguf
from tests.checkpoints import write_model
from tests.conftest import Run
from tests.gguf_bytes import array, rewritten
from tests.llava_checkpoints import VISION, VISION_24, Llava, write_clip, write_original, write_projector

NEW_KEYS = ("clip.projector_type", "clip.vision.feature_layer")


def mmproj(directory: Path, llava: Llava | None = None) -> Path:
    llava = llava or Llava()
    model = write_original(directory / "m", llava)
    return convert(model, directory / "new.gguf", vision_tower=write_clip(directory / "clip", llava)).path


def without(path: Path, to: Path, *, leave_out: tuple[str, ...] = NEW_KEYS, alignment: int | None = None) -> Path:
    """Write a GGUF file anew with gguf-py alone, without some keys: what the torch script would have written."""
    reader = GGUFReader(path)
    writer = GGUFWriter(to, "clip")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", *leave_out):
            continue
        sub_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


def tensors(path: Path) -> list[Any]:
    return [(t.name, t.tensor_type, t.shape.tolist(), t.data.tobytes()) for t in GGUFReader(path).tensors]


def test_upgrade_gives_what_a_conversion_gives(tmp_path: Path) -> None:
    new = mmproj(tmp_path)
    old = without(new, tmp_path / "old.gguf")
    result = upgrade(old, tmp_path / "out")
    assert result.path == tmp_path / "out" / "old.gguf"
    assert result.added == ("clip.projector_type = mlp", "clip.vision.feature_layer = 3")
    assert result.path.read_bytes() == new.read_bytes()


def test_upgrade_in_place_and_once_more(tmp_path: Path) -> None:
    new = mmproj(tmp_path)
    old = without(new, tmp_path / "old.gguf")
    assert upgrade(old).path == old
    assert old.read_bytes() == new.read_bytes()
    before = old.stat()
    assert upgrade(old).added == ()
    assert old.stat() == before
    assert upgrade(old, tmp_path / "copy.gguf").added == ()
    assert (tmp_path / "copy.gguf").read_bytes() == new.read_bytes()


@pytest.mark.parametrize(("projector", "projector_type"), [("mlp_norm", "mlp"), ("ldp", "ldp"), ("ldpv2", "ldpv2")])
def test_projector_kinds(projector: str, projector_type: str, tmp_path: Path) -> None:
    old = without(mmproj(tmp_path, Llava(vision=VISION_24, projector=projector)), tmp_path / "old.gguf")
    assert upgrade(old).added[0] == f"clip.projector_type = {projector_type}"


def test_only_what_is_missing_is_added(tmp_path: Path) -> None:
    new = mmproj(tmp_path)
    old = without(new, tmp_path / "old.gguf", leave_out=NEW_KEYS[1:])
    assert upgrade(old).added == ("clip.vision.feature_layer = 3",)
    assert tensors(old) == tensors(new)


def test_alignment_is_kept(tmp_path: Path) -> None:
    new = mmproj(tmp_path)
    old = without(new, tmp_path / "old.gguf", alignment=256)
    before = tensors(old)
    upgrade(old)
    assert all(t.data_offset % 256 == 0 for t in GGUFReader(old).tensors)
    assert tensors(old) == before


def test_whole_tower_was_made_for_readers_that_leave_out_a_block(tmp_path: Path) -> None:
    # A ViT-B/32 has 12 blocks of 768: with all of them in the file, 11 are meant to run.
    vision = type(VISION)(768, 8, 12, 12, image_size=32, patch_size=32)
    llava = Llava(vision=vision)
    clip = write_clip(tmp_path / "clip", llava)
    projector = write_projector(tmp_path / "p.bin", llava)
    whole = convert(clip, tmp_path / "w.gguf", llava_projector=projector, keep_last_layer=True).path
    assert upgrade(without(whole, tmp_path / "old.gguf")).added[1] == "clip.vision.feature_layer = 11"
    pruned = convert(clip, tmp_path / "p.gguf", llava_projector=projector).path
    assert upgrade(without(pruned, tmp_path / "old.gguf")).added[1] == "clip.vision.feature_layer = 11"


def test_command_line(tmp_path: Path, run: Run) -> None:
    old = without(mmproj(tmp_path), tmp_path / "old.gguf")
    result = run("upgrade", old, "-o", "new.gguf")
    assert (result.returncode, result.stdout) == (0, "new.gguf\n")
    assert result.stderr == "clipgguf: added clip.projector_type = mlp and clip.vision.feature_layer = 3\n"
    result = run("upgrade", "new.gguf")
    assert (result.returncode, result.stdout, result.stderr) == (0, "new.gguf\n", "clipgguf: nothing was needed\n")
    assert run("upgrade").returncode == 2


def test_what_is_no_mmproj_is_refused(tmp_path: Path, run: Run) -> None:
    clip = convert(write_model(tmp_path / "clip-model"), tmp_path / "clip.gguf").path
    writer = GGUFWriter(tmp_path / "llama.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    new = mmproj(tmp_path)
    shallow = tmp_path / "shallow.gguf"
    without(new, shallow, leave_out=("clip.vision.block_count",))
    (tmp_path / "short.gguf").write_bytes(new.read_bytes()[:-100])
    (tmp_path / "empty.gguf").write_bytes(b"")
    for name, words in (
        (clip, ["clip.gguf", "projectors"]),
        (tmp_path / "llama.gguf", ["general.architecture is 'llama'"]),
        (shallow, ["block_count is None", "3 blocks"]),
        (tmp_path / "short.gguf", ["short.gguf", "truncated"]),
        (tmp_path / "empty.gguf", ["empty.gguf", "0 bytes"]),
        (tmp_path / "none.gguf", ["none.gguf", "missing"]),
        (tmp_path, ["no regular file"]),
    ):
        result = run("upgrade", name)
        assert (result.returncode, result.stdout) == (1, ""), result.stderr
        (line,) = result.stderr.splitlines()
        assert all(word in line for word in words), line


def test_metadata_that_cannot_be_used_or_kept(tmp_path: Path) -> None:
    new = mmproj(tmp_path)
    count = MetadataItem("clip.vision.block_count", GGUFValueType.INT32, 3)
    with pytest.raises(CheckpointError, match="block_count is 3 and no UINT32"):
        upgrade(rewritten(new, tmp_path / "old.gguf", metadata=[count]))
    # gguf-py writes no empty array, so one of 8 values is emptied; their 32 bytes become padding.
    values = [0.5] * 8
    full = array("a", GGUFValueType.FLOAT32, 8, struct.pack("<8f", *values))
    empty = array("a", GGUFValueType.FLOAT32, 0, b"")
    marked = rewritten(new, tmp_path / "a.gguf", metadata=[MetadataItem("a", GGUFValueType.FLOAT32, values)])
    data = marked.read_bytes()
    assert full in data
    end = read_gguf(marked).data_start
    header = data[:end].replace(full, empty)
    assert len(header) == end - 32
    marked.write_bytes(header + data[end:])
    with pytest.raises(CheckpointError, match="'a' is an empty array, which cannot be written again"):
        upgrade(marked, tmp_path / "out")


def test_every_truncation_of_a_gguf_file(tmp_path: Path) -> None:
    whole = mmproj(tmp_path).read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 4000, 7), *range(4000, len(whole) - 32, 5003)]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_gguf(path)
