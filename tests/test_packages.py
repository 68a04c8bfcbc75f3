"""Wheels and sdists: with the compiled encoders where there is a compiler, and for any platform where there is none."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel is built of, in a copy."""
    root = Path(__file__).parents[1]
    copy = tmp_path_factory.mktemp("project") / "clipgguf"
    copy.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(root / name, copy)
    shutil.copytree(root / "clipgguf", copy / "clipgguf", ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.dll"))
    return copy


def built(project: Path, out: Path, kind: str, **environment: str) -> tuple[str, set[str]]:
    """Build a distribution without isolation; return its name, and what it has of the encoders."""
    pytest.importorskip("hatchling")
    if kind == "editable":
        pytest.importorskip("editables")
    out.mkdir(exist_ok=True)
    code = f"import hatchling.build as b; b.build_{kind}({str(out)!r})"
    asked = {name: value for name, value in os.environ.items() if name != "CLIPGGUF_PURE"} | environment
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True, env=asked, capture_output=True)
    (path,) = out.iterdir()
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
    else:
        with tarfile.open(path) as sdist:
            names = sdist.getnames()
    return path.name, {Path(name).name for name in names if "kernels/" in name or name.endswith("hatch_build.py")}


SOURCES_OF_KERNELS = {"__init__.py", "build.py", "encode.c"}


@pytest.mark.slow
def test_a_wheel_has_the_library_and_is_for_this_platform(project: Path, library: Path, tmp_path: Path) -> None:
    (project / "clipgguf" / "kernels" / library.name).write_bytes(b"a checkout's own")
    name, files = built(project, tmp_path / "out", "wheel")
    assert files == SOURCES_OF_KERNELS | {library.name}
    assert "-py3-none-" in name
    assert not name.endswith("-any.whl")
    with zipfile.ZipFile(tmp_path / "out" / name) as wheel:
        assert wheel.read(f"clipgguf/kernels/{library.name}") == library.read_bytes()
        assert b"Root-Is-Purelib: false" in wheel.read("clipgguf-0.1.0.dist-info/WHEEL")
    (project / "clipgguf" / "kernels" / library.name).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"CC": "/no/compiler"}, {"CLIPGGUF_PURE": "1"}], ids=["none", "pure"])
def test_without_a_compiler_a_wheel_is_for_any_platform(
    project: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    name, files = built(project, tmp_path / "out", "wheel", **environment)
    assert (name.endswith("-py3-none-any.whl"), files) == (True, SOURCES_OF_KERNELS)


@pytest.mark.slow
def test_an_editable_install_has_the_library_beside_its_source(project: Path, library: Path, tmp_path: Path) -> None:
    beside = project / "clipgguf" / "kernels" / library.name
    built(project, tmp_path / "compiled", "editable")
    assert beside.read_bytes() == library.read_bytes()
    built(project, tmp_path / "pure", "editable", CLIPGGUF_PURE="1")
    assert not beside.exists()


@pytest.mark.slow
def test_the_sdist_has_the_source_alone(project: Path, library: Path, tmp_path: Path) -> None:
    beside = project / "clipgguf" / "kernels" / library.name
    beside.write_bytes(b"a checkout's own")
    _, files = built(project, tmp_path / "out", "sdist")
    beside.unlink()
    assert files == SOURCES_OF_KERNELS | {"hatch_build.py"}
