"""What tables can say of configurations and layouts: settings, sides of squares, paths in the processor's file."""

from pathlib import Path
from typing import Any

import pytest

from clipgguf import CheckpointError, ConfigError, Options
from clipgguf.families.bases import MTMD, settled
from clipgguf.family import Family
from clipgguf.inputs import Config, Inputs
from clipgguf.layers import linear
from clipgguf.model import Model, open_family
from clipgguf.sources.local import LocalFolder
from clipgguf.table import SIDE, Prefix, Section, Value
from tests.json_files import write_json
from tests.weights import Shapes, arrays_of, write_weights

OLD, NEW = Prefix("old.weight", "vision."), Prefix("new.weight", "tower.")
FAMILY = Family(
    title="Example",
    base=MTMD,
    values=(
        settled("select_layer", -1, -2),
        Value("vision.image", "image_size", 64, kind=SIDE),
        Value("vision.preproc_image", "processor.size.longest_edge|processor.longest", 8),
    ),
    sections=(Section(OLD, "v.", linear("old", "new", "width", "wide")),),
    layouts=((Section(NEW, "v.", linear("new", "new", "width", "wide")),),),
)


def opened(directory: Path, config: Any, shapes: Shapes, processor: Any = None) -> Model:
    directory.mkdir(exist_ok=True)
    write_json(directory / "config.json", config)
    write_json(directory / "preprocessor_config.json", {"image_mean": [0] * 3, **(processor or {})})
    write_weights(directory, arrays_of(shapes))
    folder = LocalFolder(directory)
    return open_family(FAMILY, Inputs(folder, Config(folder.file("config.json"), config), Options()))


OLDER: Shapes = {"a.old.weight": (3, 4), "a.old.bias": (3,)}
NEWER: Shapes = {"a.b.new.weight": (3, 4), "a.b.new.bias": (3,)}


def test_both_layouts_make_one_file(tmp_path: Path) -> None:
    models = [opened(tmp_path / f"{n}", {}, shapes) for n, shapes in enumerate((OLDER, NEWER))]
    for model, shapes in zip(models, (OLDER, NEWER), strict=True):
        assert [(output.name, output.source.name) for output in model.outputs] == list(
            zip(("v.new.weight", "v.new.bias"), shapes, strict=True)
        )


def test_what_is_missing_has_the_layouts_own_name(tmp_path: Path) -> None:
    for n, (shapes, prefix) in enumerate(((OLDER, "a.old"), (NEWER, "a.b.new"))):
        with pytest.raises(CheckpointError, match=rf"no file has tensor '{prefix}\.bias'"):
            opened(tmp_path / f"{n}", {}, {f"{prefix}.weight": shapes[f"{prefix}.weight"]})


@pytest.mark.parametrize(("given", "side"), [(None, 64), (56, 56), ([56, 56], 56)])
def test_a_side(given: Any, side: int, tmp_path: Path) -> None:
    assert opened(tmp_path / "m", {"image_size": given}, OLDER).values["vision.image"] == side


@pytest.mark.parametrize("given", [[56, 57], [56], [56, 56, 56], [], 0, [0, 0], [True, True], "56", 2**40])
def test_no_side(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"image_size is .*, should be .*, or a list of two that are the same"):
        opened(tmp_path / "m", {"image_size": given}, OLDER)


@pytest.mark.parametrize("given", [None, -1, -2])
def test_a_setting_that_readers_know(given: Any, tmp_path: Path) -> None:
    assert opened(tmp_path / "m", {"select_layer": given}, OLDER).outputs


@pytest.mark.parametrize("given", [0, -1.0, True, [-1]])
def test_a_setting_that_they_would_compute_wrongly(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"select_layer is .* readers would compute wrongly; they know -1 or -2"):
        opened(tmp_path / "m", {"select_layer": given}, OLDER)


@pytest.mark.parametrize(
    ("processor", "found"),
    [({}, 8), ({"size": {}}, 8), ({"size": {"longest_edge": 512}}, 512), ({"longest": 32}, 32)],
)
def test_a_path_in_the_processors_file(processor: Any, found: int, tmp_path: Path) -> None:
    assert opened(tmp_path / "m", {}, OLDER, processor).values["vision.preproc_image"] == found


def test_a_path_in_the_processors_file_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json: size is 512, should be an object"):
        opened(tmp_path / "m", {}, OLDER, {"size": 512})
