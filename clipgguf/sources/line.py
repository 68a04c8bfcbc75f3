"""Requests over HTTP: one client for the whole process, and how its requests are sent, redirected and waited for.

What requests answer is for the callers to judge. Facts about the Hugging Face hub's answers (429 with ``RateLimit`` or
``Retry-After``, the headers of its redirects): huggingface_hub 2.4, and the hub's documentation of rate limits.
"""

import contextlib
import re
import ssl
import threading
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import urllib3

from clipgguf import __version__
from clipgguf.sources.callers import MOST_THREADS
from clipgguf.sources.tries import LineError

Response = urllib3.BaseHTTPResponse

CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
MOST_REDIRECTS = 5
# Of what a redirect has for a body, as much is read to use its connection again.
_MOST_OF_A_REDIRECT = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
# What the hub says of a file where it redirects to the bytes: which version it is.
_LINKED = ("X-Repo-Commit", "X-Linked-Etag", "X-Linked-Size")


class RefusedError(Exception):
    """A request that fails however often it is sent, with the reason in words."""


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Return an address's scheme, host and port: what a token may be sent to, or not."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


@dataclass(frozen=True, slots=True)
class Access:
    """Headers that give access, and go to one origin only; no message and no ``repr`` has them."""

    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of_user(cls, url: str, user: str) -> "Access":
        """Return what gives access where an address has "user:password@" in front of its host."""
        return cls(url, urllib3.make_headers(basic_auth=unquote(user))) if user else cls(url)

    def headers_for(self, url: str) -> Mapping[str, str]:
        """Return the headers for a request, which are none for another origin."""
        return self.headers if self.headers and origin(url) == origin(self.url) else {}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, whose body is still to be read; the address that gave it; what redirects to there said of the file."""

    response: Response
    url: str
    linked: Mapping[str, str]


class LineBody:
    """The body of an answer."""

    def __init__(self, response: Response) -> None:
        """Take the answer."""
        self._response = response

    def read(self, nbytes: int) -> bytes:
        """Return the next bytes, at most so many. Raises LineError when the line breaks."""
        try:
            return self._response.read(nbytes, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as e:
            raise LineError(in_words(e)) from e

    def wake(self) -> None:
        """Have a thread that waits for bytes go on."""
        with contextlib.suppress(ValueError, RuntimeError, OSError):
            self._response.shutdown()

    def close(self) -> None:
        """Close the connection, or give it back where all was read."""
        self._response.close()


class Line:
    """The client: pools of connections."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._lock = threading.Lock()
        self._pools: dict[str | None, urllib3.PoolManager] = {}
        self._context: ssl.SSLContext | None = None

    def ask(self, method: str, url: str, headers: Mapping[str, str], access: Access) -> Answer:
        """Send a request and follow redirects. Raises LineError or RefusedError when there is no answer."""
        linked: dict[str, str] = {}
        for _ in range(MOST_REDIRECTS + 1):
            response = self._send(method, url, {**headers, **access.headers_for(url)})
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return Answer(response, url, linked)
            linked |= {name: response.headers[name] for name in _LINKED if name in response.headers}
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                response.read(_MOST_OF_A_REDIRECT, decode_content=False)
            response.close()
            before, url = url, urljoin(url, location)
            scheme = urlsplit(url).scheme
            if scheme != "https" and (scheme != "http" or urlsplit(before).scheme == "https"):
                raise RefusedError(f"the server redirects from {urlsplit(before).scheme} to {scheme}, which is refused")
        raise RefusedError(f"the server redirects more than {MOST_REDIRECTS} times")

    def _send(self, method: str, url: str, headers: Mapping[str, str]) -> Response:
        # With gzip allowed, some servers ignore ranges and send the whole file, compressed.
        own = {"Accept-Encoding": "identity", "User-Agent": f"clipgguf/{__version__}"}
        try:
            return self._pool(url).request(
                method,
                url,
                headers={**own, **headers},
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
            )
        except urllib3.exceptions.SSLError as e:
            if "CERTIFICATE" in str(e).upper():
                raise RefusedError(f"the server's certificate is not trusted: {in_words(e)}") from e
            raise LineError(in_words(e)) from e
        except (urllib3.exceptions.LocationValueError, UnicodeError) as e:
            raise RefusedError("it is no address") from e
        except (urllib3.exceptions.HTTPError, OSError) as e:
            raise LineError(in_words(e)) from e

    def _pool(self, url: str) -> urllib3.PoolManager:
        """Return the connections for an address: to its host, or to the proxy that the environment names for it."""
        parts = urlsplit(url)
        proxies = urllib.request.getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if proxy and urllib.request.proxy_bypass(parts.hostname or ""):
            proxy = None
        with self._lock:
            if proxy not in self._pools:
                # One for all connections: urllib3's own would read the certificates for each of them, 1 MiB a time.
                self._context = self._context or _context()
                options: dict[str, Any] = {"ssl_context": self._context, "maxsize": MOST_THREADS, "num_pools": 8}
                if proxy is None:
                    self._pools[proxy] = urllib3.PoolManager(**options)
                else:
                    user = urlsplit(proxy).netloc.rpartition("@")[0]
                    given = urllib3.make_headers(proxy_basic_auth=unquote(user)) if user else None
                    address = proxy if "://" in proxy else f"http://{proxy}"
                    self._pools[proxy] = urllib3.ProxyManager(address, proxy_headers=given, **options)
            return self._pools[proxy]


def _context() -> ssl.SSLContext:
    """Return what certificates are trusted: the system's, and certifi's where the system has none."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:
        with contextlib.suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context


def in_words(error: BaseException) -> str:
    """Return why a request failed, without the addresses that urllib3 puts in: they may be signed."""
    is_timeout = isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError)
    if is_timeout and not isinstance(error, urllib3.exceptions.NewConnectionError):
        return "the server does not answer"
    if isinstance(error, urllib3.exceptions.IncompleteRead):
        return "the answer ends too early"
    inner = error.args[-1] if error.args else None
    if isinstance(inner, BaseException):
        return in_words(inner)
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return re.sub(r"\?\S*", "", re.sub(r"^(\w+\(host=.*?\)|<.*?>): ", "", text))


def told_wait(status: int, headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server asks to wait, by ``RateLimit`` (t=55) or ``Retry-After``; None without any."""
    # The hub has that header in all of its answers.
    limit = re.search(r";\s*t=(\d+)", headers.get("RateLimit", "")) if status == 429 else None
    after = headers.get("Retry-After", "")
    # The other form, a date, needs clocks that agree.
    seconds = after if re.fullmatch(r"[0-9]{1,6}", after) else limit[1] if limit else None
    return None if seconds is None else float(seconds)


LINE = Line()
