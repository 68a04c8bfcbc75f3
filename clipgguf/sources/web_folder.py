"""The addresses below one of a web server as a folder.

Servers that may not tell what they have, such as object stores that may not be listed, answer 403 (RFC 9110, 15.5.4)
for what is not there. So that counts as missing, but is told.
"""

from collections.abc import Iterable
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from clipgguf.errors import CheckpointError
from clipgguf.regular_file import NO_MODEL_FILES, STAND_INS
from clipgguf.sources import Folder
from clipgguf.sources.expected import Files
from clipgguf.sources.https import MISSING, NOBODY, ForbiddenError, WebFile
from clipgguf.sources.line import LINE, Access, RefusedError, told_wait
from clipgguf.sources.tries import AGAIN, LineError, MissingError, tried


class WebFolder(Folder):
    """The files below an address that are known by name; what a server lists is not looked at."""

    def __init__(self, url: str, access: Access = NOBODY) -> None:
        """Take the address."""
        parts = urlsplit(url)
        self._url, self._access = urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/")), access
        self.name = shown_address(self._url)
        self._files = Files(lambda file: WebFile(self.name_of(file), self._address(file), access, NO_MODEL_FILES))
        self._is_there: dict[str, bool] = {}
        self.refused: list[str] = []

    @property
    def title(self) -> str:
        """The last part of the address, the server's name where there is none."""
        parts = urlsplit(self.name)
        return unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.hostname or self.name

    def _address(self, file: str) -> str:
        parts = urlsplit(self._url)
        return urlunsplit(parts._replace(path=parts.path + quote(file)))

    def __contains__(self, file: str) -> bool:
        """Return whether the server has something of this name; what it forbids to read counts as missing."""
        if file not in self._is_there:
            self._is_there[file] = self._is_opened(file) if file in self._files else self._asked(file)
        return self._is_there[file]

    def _is_opened(self, file: str) -> bool:
        try:
            self.open(file)
        except MissingError as e:
            return self._refuses(file) if isinstance(e, ForbiddenError) else False
        except CheckpointError:  # It is there, and what is wrong with it is for who needs it.
            pass
        return True

    def _asked(self, file: str) -> bool:
        status = ask_status(self.name_of(file), self._address(file), self._access)
        if status in MISSING:
            return False
        if status == 403:
            return self._refuses(file)
        if status in (405, 501):  # The server has no HEAD.
            return self._is_opened(file)
        if status >= 400:
            raise CheckpointError(f"{self.name_of(file)}: cannot be read: the server answered {status}")
        return True

    def _refuses(self, file: str) -> bool:
        """Keep the name of a file that may not be read, and return that it is not there."""
        self.refused.append(file)
        return False

    def open(self, file: str) -> WebFile:
        """Open a file. Raises CheckpointError when it is missing or none that a model has."""
        return self._files.get(file)

    def expect(self, files: Iterable[str], one_of: Iterable[str] = ()) -> None:
        """Open files at the same time, of which some may be missing."""
        self._files.expect([*files, *one_of])

    def open_any(self, file: str) -> WebFile:
        """Open a file that need not be a model's."""
        return WebFile(self.name_of(file), self._address(file), self._access, STAND_INS)

    def name_of(self, file: str) -> str:
        """Return a file's address."""
        return self.name + file

    def folder(self, name: str) -> "WebFolder":
        """Return a folder inside, or beside where ``name`` begins with "../"."""
        parts = urlsplit(self._url)
        base = parts.path.rstrip("/").rpartition("/")[0] + "/" if name.startswith("../") else parts.path
        return WebFolder(urlunsplit(parts._replace(path=base + quote(name.removeprefix("../")))), self._access)


def ask_status(name: str, url: str, access: Access) -> int:
    """Return the status that a server answers to HEAD, after the usual tries; CheckpointError when there is none."""

    def ask() -> int:
        try:
            response = LINE.ask("HEAD", url, {}, access).response
        except RefusedError as e:
            raise CheckpointError(f"{name}: cannot be read: {e}") from e
        response.close()
        if response.status in AGAIN:
            said = f"the server answered {response.status}"
            raise LineError(said, told_wait(response.status, response.headers))
        return response.status

    return tried(name, ask)


def shown_address(url: str) -> str:
    """Return an address for messages: without what may give access, which is a user's password or a query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
