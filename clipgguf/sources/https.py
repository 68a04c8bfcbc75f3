"""Files of web servers as sources, read by ranges over lines that break.

An answer counts when it is a 206 (RFC 9110, 15.3.7) of the range, the size and the version (ETag) that were asked for.
Whatever else comes is an error, or a reason to ask again at the byte where it ended.
"""

import contextlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from clipgguf.errors import CheckpointError
from clipgguf.sources.fetch import Body
from clipgguf.sources.line import LINE, Access, Answer, LineBody, RefusedError, Response, told_wait
from clipgguf.sources.ranged import NOTHING, RangedFile
from clipgguf.sources.tries import AGAIN, LineError, MissingError

# What a server that knows no ranges may send whole: a tokenizer.json has 3.6 MB.
LARGEST_WHOLE = 8 << 20
MISSING = (404, 410)
NOBODY = Access()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file's bytes are now: the address after redirects, which may be signed, and the ETag there."""

    url: str
    version: str | None


class ForbiddenError(MissingError):
    """A file may not be read, which some servers say of what is not there."""


class WebFile(RangedFile):
    """A file at an address, which must stay as it is."""

    def __init__(self, name: str, url: str, access: Access = NOBODY, refused: Mapping[bytes, str] = NOTHING) -> None:
        """Ask for its beginning. Raises CheckpointError when there is none, or what is ``refused``."""
        self._url, self._access = url, access
        self._resolving = threading.Lock()
        self._place: _Place | None = None
        self._last = _Place("", None)
        self._linked: Mapping[str, str] = {}
        super().__init__(name, refused)

    @property
    def version(self) -> str | None:
        """The file's ETag, where it stands for its bytes (RFC 9110, 8.8.1: a strong one); else None."""
        etag = self._linked.get("X-Linked-Etag") or self._last.version
        return etag if etag is not None and etag.startswith('"') else None

    def answer(self, start: int, stop: int) -> tuple[Body, int]:
        """Ask once for a range; return an answer that begins at its first byte, and the byte where it ends.

        Raises LineError when it is worth to ask again, CheckpointError when it is not.
        """
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        try:
            with self._resolving:
                if (place := self._place) is None:
                    answer = LINE.ask("GET", self._url, headers, self._access)
                    return self._checked(answer, None, start, stop)
            return self._checked(LINE.ask("GET", place.url, headers, self._access), place, start, stop)
        except RefusedError as e:
            raise self._error(str(e)) from e

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.name}: cannot be read: {what}")

    def _checked(self, answer: Answer, place: _Place | None, start: int, stop: int) -> tuple[Body, int]:
        """Return an answer's body and where it ends, after holding it against what was asked for."""
        try:
            self._check_status(answer, place, start)
            headers = answer.response.headers
            if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
                raise self._error(f"the server compresses it ({encoding}), which was not asked for")
            is_whole = answer.response.status == 200
            if is_whole or answer.response.status == 416:
                first, total = 0, self._whole_size(answer.response)
                end = total
            else:
                found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", headers.get("Content-Range", ""))
                if found is None:
                    raise self._error("the server answered 206 without a Content-Range")
                first, end, total = int(found[1]), int(found[2]) + 1, int(found[3])
                if first != start or not start < end <= min(stop, total):
                    asked = f"bytes {start:,} to {min(stop, total):,} were asked for"
                    raise self._error(f"{asked}, the server answered {first:,} to {end:,}")
            length = headers.get("Content-Length")
            if answer.response.status != 416 and length is not None and length != str(end - first):
                raise self._error(f"the server answered {length} bytes instead of {end - first:,}")
            self._check_version(answer, place, total)
        except BaseException:
            answer.response.close()
            raise
        return LineBody(answer.response), end

    def _check_status(self, answer: Answer, place: _Place | None, start: int) -> None:
        """Raise an error for an answer that is neither a range nor, as the first one may be, a whole small file."""
        status, reason = answer.response.status, answer.response.reason or ""
        said = f"the server answered {status} {reason}".rstrip()
        if status == 206 or (start == 0 and place is None and status in (200, 416)):
            return
        if status in AGAIN:
            raise LineError(said, told_wait(status, answer.response.headers))
        if status in (401, 403) and answer.url != self._url:
            with self._resolving if place is not None else contextlib.nullcontext():
                if self._place is place:
                    self._place = None
            raise LineError(f"{said} to a signed address", is_expired=place is not None)
        if status in MISSING:
            raise MissingError(f"{self.name}: is missing: {said}")
        if status == 403:
            raise ForbiddenError(f"{self.name}: cannot be read: {said}")
        if status == 200:
            said = "the server ignores ranges, and sends the whole file"
        if status == 416:
            said = f"it has changed: it had {self.size:,} bytes, and now fewer"
        raise self._error(said)

    def _whole_size(self, response: Response) -> int:
        """Return the size of a file that comes whole, or is empty."""
        length = response.headers.get("Content-Length", "")
        if response.status == 416:
            if response.headers.get("Content-Range") == "bytes */0":
                return 0
            raise self._error("the server answered 416 to a range from its first byte")
        if not re.fullmatch(r"\d{1,12}", length) or int(length) > LARGEST_WHOLE:
            raise self._error("the server ignores ranges, and sends the whole file")
        return int(length)

    def _check_version(self, answer: Answer, place: _Place | None, size: int) -> None:
        """Raise CheckpointError when it is not the version that was first answered; remember where its bytes are."""
        headers = answer.response.headers
        version = headers.get("ETag") or headers.get("Last-Modified")
        if self.size < 0:
            self.size, self._linked = size, answer.linked
        elif size != self.size:
            raise self._error(f"it has changed: it had {self.size:,} bytes, and now {size:,}")
        elif place is None and answer.linked != self._linked:
            raise self._error("it has changed: the hub answers with another version than before")
        elif version != (place or self._last).version and not (place is None and self._linked.get("X-Linked-Etag")):
            raise self._error("it has changed: the server answers with another version (ETag) than before")
        if place is None:
            self._place = self._last = _Place(answer.url, version)
