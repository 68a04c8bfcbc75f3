"""Requests to object stores: obstore's client for a bucket, and why a request failed, in our words.

Region, endpoint and credentials are the environment's, as obstore reads it (its documentation, "Authentication", and
object_store's builders), and stand in no message.
"""

import os
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from obstore.exceptions import BaseError, PreconditionError
from obstore.store import from_url

from clipgguf.errors import CheckpointError
from clipgguf.sources import tries
from clipgguf.sources.address import StoreAddress
from clipgguf.sources.tries import AGAIN, LineError, MissingError

T = TypeVar("T")

# A request of ours may wait long for its turn to be read, but not for bytes.
_CLIENT = {"connect_timeout": "10s", "read_timeout": "30s", "timeout": "24h"}
# What the variables of a store begin with, and those that give access to it.
_VARIABLES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
_ACCESS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for what everybody may read",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for what everybody may read",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true for what everybody "
    "may read",
}
_NO_ACCESS = "there are no credentials for it: {access}"
# Where obstore looks for credentials when there are none: what only machines in the store's own cloud can ask.
_METADATA = re.compile(r"http://(169\.254\.|metadata\.google)")
# What obstore's messages say, and what is told instead of them: they have addresses, which may be signed.
_WORDS = (
    (r"non-partial response", "the store ignores ranges, and sends the whole object"),
    (r"Requested \d+\.\.\d+, got", "the store answers another range than was asked for"),
    (r"redirect without LOCATION", "the bucket is in another region, which AWS_REGION should name"),
    (r"builder error", "its endpoint is no https address, which needs {variables}_ALLOW_HTTP=true"),
    (r"[Cc]redential|[Aa]ccount", _NO_ACCESS),
)
_PASSING_WORDS = (
    (r"body error|error decoding", "the answer ends too early, or stops"),
    (r"error sending request", "the store cannot be reached, or does not answer"),
)


def open_store(address: StoreAddress, retries: int = 0) -> Any:
    """Return obstore's client for a bucket, which is not asked yet. Raises CheckpointError when none can be made."""
    is_allowed = os.environ.get(f"{_VARIABLES[address.scheme]}_ALLOW_HTTP", "").lower() in ("1", "true", "yes", "on")
    backoff = {
        "init_backoff": timedelta(seconds=tries.FIRST_WAIT),
        "max_backoff": timedelta(seconds=tries.LONGEST_WAIT),
    }
    timeout = timedelta(seconds=tries.LONGEST_TOLD_WAIT)
    try:
        return from_url(
            f"{address.scheme}://{address.bucket}",
            client_options={**_CLIENT, "allow_http": is_allowed},
            retry_config={"max_retries": retries, "backoff": backoff, "retry_timeout": timeout},
        )
    except (BaseError, ValueError) as e:
        raise CheckpointError(f"{address}: {why(address, e)[0]}") from e


def why(address: StoreAddress, error: Exception) -> tuple[str, bool]:
    """Return why a request failed, in words without the store's own, and whether it is worth to ask again."""
    text, _, details = str(error).partition("\n\nDebug source")
    words, is_passing = f"the client failed ({type(error).__name__})", True
    if _METADATA.search(text):
        words, is_passing = _NO_ACCESS, False
    elif "InvalidCertificate" in details:
        words, is_passing = "the store's certificate is not trusted", False
    elif answered := re.search(r"status code: (\d{3}) ([A-Za-z ]*)", text):
        return _answered(address, int(answered[1]), answered[2].strip(), text)
    else:
        said = text.rpartition(" - ")[2]  # Before that are addresses.
        for pattern, known in (*_WORDS, *_PASSING_WORDS):
            if re.search(pattern, said):
                words, is_passing = known, (pattern, known) in _PASSING_WORDS
                break
    return words.format(variables=_VARIABLES[address.scheme], access=_ACCESS[address.scheme]), is_passing


def _answered(address: StoreAddress, status: int, reason: str, text: str) -> tuple[str, bool]:
    code = re.search(r"<Code>(\w+)</Code>", text)
    if code and code[1] == "NoSuchBucket":
        return f"there is no bucket {address.bucket}", False
    if status in (401, 403):
        return f"the credentials of the environment do not allow it (the store answered {status})", False
    return f"the store answered {status} {reason}" + (f" ({code[1]})" if code else ""), status in AGAIN


def asked(address: StoreAddress, ask: Callable[[], T]) -> T:
    """Return what a request gives, sent once. Raises LineError when it is worth to ask again, else CheckpointError."""
    try:
        return ask()
    except PreconditionError as e:
        what = "it has changed: the store has another version (ETag) than before"
        raise CheckpointError(f"{address}: cannot be read: {what}") from e
    except (BaseError, OSError, ValueError) as e:
        words, is_passing = why(address, e)
        if is_passing:
            raise LineError(words) from e
        if isinstance(e, FileNotFoundError):
            raise MissingError(f"{address}: is missing: {words}") from e
        raise CheckpointError(f"{address}: cannot be read: {words}") from e
