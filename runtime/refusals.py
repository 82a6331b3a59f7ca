"""What a client is told when a request is refused: a status, and a code that does not change.

A code is the name of the error's class, without "Error", in small letters: DamagedFeatureFileError is
`damaged_feature_file`. docs/SERVING.md lists them.

Always holds: each code has one status, and a text comes with it that names the value and the remedy.
"""

import re

from . import errors

# The class -> status; subclasses that are not named have that of the class above.
STATUS: dict[type[errors.EdgeCloudError], int] = {
    errors.EmptyFeatureFileError: 400,
    errors.NotAFeatureFileError: 400,
    errors.UnsupportedVersionError: 400,
    errors.DamagedFeatureFileError: 400,
    errors.TruncatedFeatureFileError: 400,
    errors.TrailingBytesError: 400,
    errors.WrongBundleError: 400,
    errors.TooManySymbolsError: 413,
    errors.MalformedRequestError: 400,
    errors.UnsupportedSharedMemoryError: 400,
    errors.UnauthorizedError: 401,
    errors.UnknownModelError: 404,
    errors.SlowBodyError: 408,
    errors.BodyTooLargeError: 413,
    errors.TooManyFilesError: 413,
    errors.UnsupportedEncodingError: 415,
    errors.QueueFullError: 429,
    errors.HeadTooLargeError: 431,
    errors.ClientGoneError: 499,
    errors.GraphFailedError: 500,
    errors.StartingError: 503,
    errors.DrainingError: 503,
    errors.DeadlineError: 504,
}
# Refusals that come of no class of this package.
NOT_FOUND, METHOD_NOT_ALLOWED, INTERNAL = "not_found", "method_not_allowed", "internal"


def code_of(kind: type[errors.EdgeCloudError]) -> str:
    """DeadlineError -> "deadline"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__.removesuffix("Error")).lower()


def http_status(error: errors.EdgeCloudError) -> int:
    """The HTTP status of a refusal; 500 for what no client can bring about."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
