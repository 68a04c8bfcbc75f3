"""Where a file goes: what ``output`` means, and whether a file can be written there."""

import os
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from clipgguf.errors import CheckpointError, OutputError, UsageError, os_reason, why_no_file
from clipgguf.options import PathLike
from clipgguf.output_file import check_room
from clipgguf.sources.address import HubAddress, StoreAddress
from clipgguf.sources.given import INSTALL_HUB, INSTALL_STORES, has_package, is_far, shown_place

SUFFIX = ".gguf"
# Where a file can go: on this machine, into an object store, to a model of the hub.
Place = Path | StoreAddress | HubAddress
# Of a name that becomes part of a file's name, the most bytes: names of files end at 255.
_LONGEST_NAME = 150
_ADDRESSES = "s3://BUCKET/PREFIX/, gs://, az:// or hf://OWNER/NAME"


def check_output(output: PathLike | None, fields: Iterable[str] = ("name", "outtype")) -> None:
    """Raise UsageError for an output that can mean no file, before anything is read; fields may stand in braces."""
    if output is None:
        return
    text = os.fspath(output)
    if not text:
        raise UsageError("is empty, should be a directory or a .gguf file", "output")
    if text == "-":
        raise UsageError("is '-', but a GGUF file is never written to standard output; ./- is a directory", "output")
    try:
        usable = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise UsageError(f"is {text!r}, which can be no file's name", "output")
    filled = _fill(text, dict.fromkeys(fields, "x"))
    if is_far(output):
        _check_address(text, filled)


def _check_address(given: str, text: str) -> None:
    """Raise UsageError for an address that nothing can be written to, OutputError without the extra that it needs."""
    try:
        is_store = StoreAddress.read(text) is not None
        if not is_store and not (text.startswith("hf://") and HubAddress.read(text)):
            what = f"where nothing can be written; should be a path or {_ADDRESSES}"
            raise UsageError(f"is {shown_place(text)}, {what}", "output")
    except CheckpointError as e:
        raise UsageError(f"is {e}", "output") from e
    package, install = ("obstore", INSTALL_STORES) if is_store else ("huggingface_hub", INSTALL_HUB)
    if not has_package(package):
        raise OutputError(f"{given}: cannot be written: {install} lets clipgguf write there")


def output_place(directory: Path, output: PathLike | None, file_name: str, fields: Mapping[str, str]) -> Place:
    """Return where a file goes as ``output_path`` does; what ``output`` says may also be an address.

    Below the bucket, or the model of the hub, that is a file where it ends in ``.gguf``, else what ``file_name`` goes
    into.
    """
    if output is None or not is_far(output):
        return output_path(directory, output, file_name, fields)
    check_output(output, fields)
    text = _fill(os.fspath(output), fields)
    if (stored := StoreAddress.read(text)) is not None:
        return replace(stored, key=_key(stored.key, file_name))
    address = HubAddress.read(text)
    assert address is not None
    return replace(address, path=_key(address.path, file_name))


def _key(key: str, file_name: str) -> str:
    if key.lower().endswith(SUFFIX):
        return key
    folder = key.rstrip("/")
    return f"{folder}/{file_name}" if folder else file_name


def output_path(directory: Path, output: PathLike | None, file_name: str, fields: Mapping[str, str]) -> Path:
    """Return where a file goes: ``output`` if it ends in ``.gguf``, else ``file_name`` in there, or in ``directory``.

    What ends in a separator or is a directory is one, whatever its name. ``fields`` has the text for what stands in
    braces. Raises UsageError for an output that may be meant as a file and is none of ours.
    """
    check_output(output, fields)
    if output is None:
        return directory / file_name
    if is_far(output):
        raise UsageError(f"is {shown_place(output)}, should be a path", "output")
    pattern = os.fspath(output)
    text = _fill(pattern, fields)
    path = Path(text)
    if text.endswith((os.sep, os.altsep or os.sep)) or path.is_dir():
        path /= file_name
    elif not text.lower().endswith(SUFFIX):
        if path.exists():
            kind = "a file" if path.is_file() else "neither a file nor a directory"
            raise UsageError(f"is {text}, {kind}; should be a directory or end in {SUFFIX}", "output")
        # A version, as in llava-v1.5, is no suffix.
        if re.match(r"\.[^\W\d]", Path(pattern).suffix):
            what = f"no directory and does not end in {SUFFIX}; for a new directory write {text}{os.sep}"
            raise UsageError(f"is {text}, which is {what}", "output")
        path /= file_name
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(f"is {path}, which {why_no_file(path)}", "output")
    return path


def _fill(text: str, fields: Mapping[str, str]) -> str:
    """Return text with its fields filled in; two braces are one. Without any fields, braces mean nothing."""
    if not fields:
        return text
    known = " and ".join(f"{{{field}}}" for field in fields)
    filled = []
    try:
        for literal, field, spec, conversion in string.Formatter().parse(text):
            filled.append(literal)
            if field is not None and (field not in fields or spec or conversion):
                raise UsageError(f"has {{{field}}}, known are {known}; a brace is written twice", "output")
            filled.append(fields[field] if field is not None else "")
    except UsageError:
        raise
    except ValueError as e:  # A brace without its other.
        raise UsageError(f"has a single brace: write it twice, or {known}", "output") from e
    return "".join(filled)


def safe_name(name: str) -> str:
    """Return a name as part of a file's: letters, digits, and what no shell and no system takes for something else."""
    safe = re.sub(r"[^\w.+-]+", "-", name).encode("utf-8", "ignore")[:_LONGEST_NAME].decode("utf-8", "ignore")
    return safe.strip("-.") or "model"


@dataclass(frozen=True, slots=True)
class Outlook:
    """What writing a file would do: bytes of a file replaced, the first directory made, and why it cannot be done."""

    replaces: int | None
    makes: Path | None
    problem: str | None


def outlook(path: Place, nbytes: int) -> Outlook:
    """Look what writing a file of about ``nbytes`` to a place would do; writes nothing."""
    if not isinstance(path, Path):
        return _far_outlook(path)
    replaces, makes, problem = None, None, None
    try:
        if path.is_dir():
            raise OutputError(f"{path}: is a directory, should be a file name")
        replaces = path.stat().st_size if path.exists() else None
        directory = path.parent
        while not directory.exists():
            makes, directory = directory, directory.parent
        if not directory.is_dir():
            raise OutputError(f"{path}: cannot be written: {directory} is no directory")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise OutputError(f"{path}: cannot be written: {directory} may not be written to")
        check_room(path, nbytes, directory)
    except OutputError as e:
        problem = str(e)
    except OSError as e:
        problem = f"{path}: cannot be written: {os_reason(e)}"
    return Outlook(replaces, makes, problem)


def _far_outlook(address: StoreAddress | HubAddress) -> Outlook:
    from clipgguf.uploads import replaced_size

    try:
        return Outlook(replaced_size(address), None, None)
    except OutputError as e:
        return Outlook(None, None, str(e))
