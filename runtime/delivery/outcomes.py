"""What a delivery takes and gives: encoded images, and the outcome of each.

Always holds: an image is accepted into the spool before anything else is reported about it,
whatever is wrong with the connection to the server.
"""

from collections.abc import Generator, Iterable
from typing import Any, Literal, NamedTuple

from ..errors import EdgeCloudError, SpoolError
from .spool import REFUSED, Entry, Spool


class Encoded(NamedTuple):
    """An image's feature file, or why it has none."""

    image: str
    data: bytes = b""
    error: str | None = None


class Outcome(NamedTuple):
    """What happened to an image.

    Attributes:
        status: "failed" means that there is no feature file, or that the spool could not take it;
            "spooled", that the feature file is still in the spool.
        key: of the feature file, if there is one.
        result: what the spool recorded, if `status` is "delivered" or "refused".
        error: why, unless `status` is "delivered".
    """

    image: str
    status: Literal["delivered", "refused", "failed", "spooled"]
    key: str | None = None
    result: dict[str, Any] | None = None
    error: str | None = None


def recorded(image: str, result: dict[str, Any]) -> Outcome:
    """The outcome of an image whose key has a result."""
    error = None
    if result["status"] == REFUSED:
        error = result.get("message") or f"HTTP {result.get('http')}"
    return Outcome(image, result["status"], result["key"], result, error)


def accept_all(
    spool: Spool, images: Iterable[Encoded], why: EdgeCloudError
) -> Generator[Outcome, None, None]:
    """Accept images into the spool when nothing can be posted; raises `why` after the last."""
    for image in images:
        if image.error is not None:
            yield Outcome(image.image, "failed", error=image.error)
            continue
        try:
            entry = spool.accept(image.image, image.data)
        except SpoolError as error:
            yield Outcome(image.image, "failed", error=str(error))
            continue
        if isinstance(entry, Entry):
            yield Outcome(image.image, "spooled", entry.key, error=str(why))
        else:
            yield recorded(image.image, entry)
    raise why
