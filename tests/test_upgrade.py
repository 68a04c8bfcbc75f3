"""Files from before get what they lack: two keys more, and not a byte of a tensor less."""

import os
import stat
import struct
import sys
from pathlib import Path

import pytest
from gguf import GGUFValueType, GGUFWriter

from clipgguf import CheckpointError, Options, convert, upgrade
from clipgguf.checkpoint.gguf_file import MetadataItem
from clipgguf.checkpoint.gguf_reader import read_gguf
from clipgguf.sources.local import LocalFile
from tests.checkpoints import write_model
from tests.clip_checkpoints import write_clip
from tests.conftest import Run
from tests.gguf_bytes import array, rewritten
from tests.gguf_reading import read, tensors
from tests.llava_checkpoints import VISION, VISION_24, Llava, write_projector
from tests.mmproj_files import NEW_KEYS, mmproj
from tests.other_mmproj import OTHERS, QWEN2_VL, write_other


def test_upgrade_gives_what_a_conversion_gives(tmp_path: Path) -> None:
    new = mmproj(tmp_path)
    old = rewritten(new, tmp_path / "old.gguf", without=NEW_KEYS)
    result = upgrade(old, tmp_path / "out", feature_layer=3)
    assert result.path == tmp_path / "out" / "old.gguf"
    assert result.added == ("clip.projector_type = mlp", "clip.vision.feature_layer = 3")
    assert result.path.read_bytes() == new.read_bytes()


def test_upgrade_in_place_and_once_more(tmp_path: Path) -> None:
    new = mmproj(tmp_path)
    old = rewritten(new, tmp_path / "old.gguf", without=NEW_KEYS)
    assert upgrade(old, feature_layer=3).path == old
    assert old.read_bytes() == new.read_bytes()
    before = old.stat()
    assert upgrade(old).added == ()
    assert old.stat() == before
    assert upgrade(old, tmp_path / "copy.gguf").added == ()
    assert (tmp_path / "copy.gguf").read_bytes() == new.read_bytes()


@pytest.mark.parametrize(("projector", "projector_type"), [("mlp_norm", "mlp"), ("ldp", "ldp"), ("ldpv2", "ldpv2")])
def test_projector_kinds(projector: str, projector_type: str, tmp_path: Path) -> None:
    old = rewritten(
        mmproj(tmp_path, Llava(vision=VISION_24, projector=projector)), tmp_path / "old.gguf", without=NEW_KEYS
    )
    assert upgrade(old, feature_layer=2).added[0] == f"clip.projector_type = {projector_type}"


def test_only_what_is_missing_is_added(tmp_path: Path) -> None:
    new = mmproj(tmp_path)
    old = rewritten(new, tmp_path / "old.gguf", without=NEW_KEYS[1:])
    assert upgrade(old, feature_layer=3).added == ("clip.vision.feature_layer = 3",)
    assert list(tensors(old).items()) == list(tensors(new).items())
    only_type = rewritten(new, tmp_path / "type.gguf", without=NEW_KEYS[:1])
    assert upgrade(only_type).added == ("clip.projector_type = mlp",)


def test_alignment_is_kept(tmp_path: Path) -> None:
    new = mmproj(tmp_path)
    old = rewritten(new, tmp_path / "old.gguf", alignment=256, without=NEW_KEYS)
    before = list(tensors(old).items())
    upgrade(old, feature_layer=3)
    assert all(t.data_offset % 256 == 0 for t in read(old).tensors.values())
    assert list(tensors(old).items()) == before


@pytest.mark.slow
def test_whole_tower_was_made_for_readers_that_leave_out_a_block(tmp_path: Path) -> None:
    # A ViT-B/32 has 12 blocks of 768: with all of them in the file, 11 are meant to run.
    vision = type(VISION)(768, 8, 12, 12, image_size=32, patch_size=32)
    llava = Llava(vision=vision)
    clip = write_clip(tmp_path / "clip", llava.clip)
    projector = write_projector(tmp_path / "p.bin", llava)
    whole = convert(clip, tmp_path / "w.gguf", options=Options(llava_projector=projector, keep_last_layer=True)).path
    assert (
        upgrade(rewritten(whole, tmp_path / "old.gguf", without=NEW_KEYS)).added[1] == "clip.vision.feature_layer = 11"
    )
    pruned = convert(clip, tmp_path / "p.gguf", options=Options(llava_projector=projector)).path
    assert (
        upgrade(rewritten(pruned, tmp_path / "old.gguf", without=NEW_KEYS)).added[1] == "clip.vision.feature_layer = 11"
    )


def test_a_layer_that_the_file_does_not_tell(tmp_path: Path, run: Run) -> None:
    new = mmproj(tmp_path)
    old = rewritten(new, tmp_path / "old.gguf", without=NEW_KEYS[1:])
    before = old.read_bytes(), old.stat()
    result = run("upgrade", old)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"clipgguf: error: {old}: does not tell whether all of its 3 blocks are meant to run: pass --feature-layer 3 "
        "if the script left out the tower's last block, as most do, or one less if the file has them all\n"
    )
    assert (old.read_bytes(), old.stat()) == before
    assert upgrade(old, tmp_path / "two.gguf", feature_layer=2).added == ("clip.vision.feature_layer = 2",)
    with pytest.raises(CheckpointError, match="has 3 blocks, --feature-layer is 4"):
        upgrade(old, feature_layer=4)
    with pytest.raises(ValueError, match="feature_layer is 0"):
        upgrade(old, feature_layer=0)


def test_a_layer_that_the_file_tells_is_not_changed(tmp_path: Path) -> None:
    new = mmproj(tmp_path)
    before = new.read_bytes()
    assert upgrade(new, feature_layer=3).added == ()
    with pytest.raises(CheckpointError, match=r"feature_layer is \(3,\) and is not changed, --feature-layer is 2"):
        upgrade(new, feature_layer=2)
    assert new.read_bytes() == before


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_left_alone(family: str, tmp_path: Path, run: Run) -> None:
    path = write_other(tmp_path / "x.gguf", OTHERS[family])
    before = path.read_bytes(), path.stat()
    result = run("upgrade", path)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    told = " and ".join(f"{key} is {text!r}" for key, text in OTHERS[family].types.items())
    assert f"is no mmproj of a CLIP tower that could be upgraded: {told}, of which no family is known here" in line
    assert (path.read_bytes(), path.stat()) == before


def test_other_families_without_a_type_are_left_alone(tmp_path: Path) -> None:
    # The names of Qwen2-VL's projector are LLaVA's, but its tower has a second kernel.
    path = write_other(tmp_path / "x.gguf", QWEN2_VL, types={})
    with pytest.raises(CheckpointError, match=r"tensors that LLaVA's files do not have, as 'v.patch_embd.weight.1'"):
        upgrade(path, feature_layer=1)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (MetadataItem(NEW_KEYS[0], GGUFValueType.STRING, "ldp"), "is 'ldp', but its tensors are those of 'mlp'"),
        (MetadataItem(NEW_KEYS[0], GGUFValueType.UINT32, 7), "is 7, should be a word"),
    ],
)
def test_a_type_that_cannot_be(item: MetadataItem, words: str, tmp_path: Path) -> None:
    path = rewritten(mmproj(tmp_path), tmp_path / "x.gguf", metadata=[item])
    with pytest.raises(CheckpointError, match=words):
        upgrade(path)


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither modes nor owners")


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_mode_is_kept(mode: int, tmp_path: Path) -> None:
    old = rewritten(mmproj(tmp_path), tmp_path / "old.gguf", without=NEW_KEYS)
    old.chmod(mode)
    assert upgrade(old, feature_layer=3).added
    assert stat.S_IMODE(old.stat().st_mode) == mode


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_owner_is_kept(tmp_path: Path) -> None:
    old = rewritten(mmproj(tmp_path), tmp_path / "old.gguf", without=NEW_KEYS)
    os.chown(old, 12_345, 23_456)
    assert upgrade(old, feature_layer=3).added
    assert (old.stat().st_uid, old.stat().st_gid) == (12_345, 23_456)


@POSIX
def test_a_symbolic_link_stays_one(tmp_path: Path, run: Run) -> None:
    new = mmproj(tmp_path)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    blob = rewritten(new, tmp_path / "blobs" / "0123abcd", without=NEW_KEYS)
    link = tmp_path / "snapshot" / "mmproj.gguf"
    link.symlink_to("../blobs/0123abcd")
    result = run("upgrade", link, "--feature-layer", 3)
    assert (result.returncode, result.stdout) == (0, f"{link}\n")
    assert link.readlink() == Path("../blobs/0123abcd")
    assert blob.read_bytes() == new.read_bytes()
    assert [path.name for path in (tmp_path / "snapshot").iterdir()] == ["mmproj.gguf"]
    # The same file by another name is upgraded in place, too.
    rewritten(new, blob, without=NEW_KEYS)
    assert upgrade(blob, link, feature_layer=3).path == link
    assert link.is_symlink()
    assert blob.read_bytes() == new.read_bytes()


@POSIX
def test_a_read_only_file_is_not_replaced(tmp_path: Path, run: Run) -> None:
    new = mmproj(tmp_path)
    old = rewritten(new, tmp_path / "old.gguf", without=NEW_KEYS)
    old.chmod(0o444)
    before = old.read_bytes(), old.stat()
    result = run("upgrade", old, "--feature-layer", 3)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"clipgguf: error: {old}: is read-only, so it is not replaced; -o writes the new file elsewhere\n"
    )
    assert (old.read_bytes(), old.stat()) == before
    assert upgrade(old, tmp_path / "out.gguf", feature_layer=3).path.read_bytes() == new.read_bytes()
    # What needs nothing is not touched anyway.
    new.chmod(0o444)
    assert upgrade(new).added == ()


def test_command_line(tmp_path: Path, run: Run) -> None:
    old = rewritten(mmproj(tmp_path), tmp_path / "old.gguf", without=NEW_KEYS)
    result = run("upgrade", old, "-o", "new.gguf", "--feature-layer", "3")
    assert (result.returncode, result.stdout) == (0, "new.gguf\n")
    assert result.stderr == "clipgguf: added clip.projector_type = mlp and clip.vision.feature_layer = 3\n"
    result = run("upgrade", "new.gguf")
    assert (result.returncode, result.stdout, result.stderr) == (0, "new.gguf\n", "clipgguf: nothing was needed\n")
    assert run("upgrade").returncode == 2
    for number in ("0", "-2", "x"):
        result = run("upgrade", old, "--feature-layer", number)
        assert result.returncode == 2
        assert "--feature-layer" in result.stderr


def test_what_is_no_mmproj_is_refused(tmp_path: Path, run: Run) -> None:
    clip = convert(write_model(tmp_path / "clip-model"), tmp_path / "clip.gguf").path
    writer = GGUFWriter(tmp_path / "llama.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    new = mmproj(tmp_path)
    shallow = tmp_path / "shallow.gguf"
    rewritten(new, shallow, without=("clip.vision.block_count",))
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
    end = read_gguf(LocalFile(marked)).data_start
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
            read_gguf(LocalFile(path))
