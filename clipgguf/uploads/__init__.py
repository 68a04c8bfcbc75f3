"""Files that are written elsewhere: into object stores as they are made, to the Hugging Face hub when they are."""

from typing import TYPE_CHECKING

from clipgguf.sources.address import HubAddress, StoreAddress

if TYPE_CHECKING:
    from clipgguf.planning import Plan
    from clipgguf.writer import Progress


def upload_plan(
    plan: "Plan",
    address: StoreAddress | HubAddress,
    *,
    threads: int | None = None,
    progress: "Progress | None" = None,
) -> dict[str, int]:
    """Write the file that a plan describes to an address, where it appears when it is complete, or not at all.

    Takes and returns what ``write_plan`` does. Raises OutputError when the file cannot be written, CheckpointError when
    a source file cannot be read to its end.
    """
    if isinstance(address, StoreAddress):
        from clipgguf.uploads.object_store import upload

        return upload(plan, address, threads=threads, progress=progress)
    from clipgguf.uploads.hub import upload_when_written

    return upload_when_written(plan, address, threads=threads, progress=progress)


def replaced_size(address: StoreAddress | HubAddress) -> int | None:
    """Return the bytes of the file at an address, None where there is none; OutputError when none can be written."""
    if isinstance(address, StoreAddress):
        from clipgguf.uploads.object_store import object_size

        return object_size(address)
    from clipgguf.uploads.hub import hub_size

    return hub_size(address)
