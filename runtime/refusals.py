"""What the service tells a client of a refused request: an HTTP status, and a code.

A code is the name of the error's class without "Error", in snake case: DamagedFeatureFileError is
`damaged_feature_file`. docs/SERVING.md lists them. Server and sender share this file.

Always holds: a code keeps its name and status across releases; the message beside it may change.
"""

import re

from . import errors

# A class that is not listed has the status of its nearest base class that is.
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
    errors.PageNotBuiltError: 404,
    errors.NoEdgeHalfError: 404,
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
# Codes of refusals that have no error class.
NOT_FOUND, METHOD_NOT_ALLOWED, INTERNAL = "not_found", "method_not_allowed", "internal"


def code_of(kind: type[errors.EdgeCloudError]) -> str:
    """The code of an error class: DeadlineError -> "deadline"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__.removesuffix("Error")).lower()


def http_status(error: errors.EdgeCloudError) -> int:
    """The HTTP status of a refusal; 500 for an error that no request can cause."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
