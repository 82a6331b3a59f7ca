"""All refusals: each has a class of its own, and its message names the value and the remedy.

Programs can act on the class instead of the message, which may be reworded.

Always holds: whatever an image, a feature file or a bundle contains, the result is a right answer
or one of these errors.
"""


class EdgeCloudError(Exception):
    """The base class of all errors of this package."""


class MissingExtraError(EdgeCloudError):
    """An optional package is needed and not installed."""


class OutputError(EdgeCloudError):
    """No file can be written under the given name."""


class SameOutputError(OutputError):
    """Two inputs would become one output file, or an output would replace an input."""


class ClosedStreamError(EdgeCloudError):
    """Standard input or output is needed and is closed."""


class ImageError(EdgeCloudError):
    """An image that cannot be encoded."""


class ImageNotFoundError(ImageError):
    """No file of that name."""


class ImageTypeError(ImageError):
    """The argument is of a type that is no image, or is closed or cannot be read."""


class NotAnImageError(ImageError):
    """A file that no image decoder recognises."""


class UnsupportedImageError(ImageError):
    """An image format, or a variant of one, that no installed decoder reads."""


class UnknownLevelsError(ImageError):
    """Pixel levels for which nothing says which are black and white."""


class DamagedImageError(ImageError):
    """An image file that is truncated or damaged."""


class DecompressionBombError(ImageError):
    """An image of more pixels than is safe to decode."""


class ImageFileTooLargeError(ImageError):
    """Standard input or a pipe gives more bytes than any image file has."""


class ImageTooSmallError(ImageError):
    """An image of less than 8 pixels on a side that is not to be resized."""


class ImageTooLargeError(ImageError):
    """An image of more pixels than the bundle allows."""


class ImageArrayError(ImageError):
    """An array that is not uint8 [height, width, 3]."""


class NotANumberError(EdgeCloudError):
    """The edge graph computed a latent that is not a number, or is infinite."""


class RateError(EdgeCloudError):
    """A rate level or a number of bytes that cannot be asked for."""


class BudgetTooSmallError(RateError):
    """A feature file of that image cannot have so few bytes."""


class NotFiniteLogitsError(EdgeCloudError):
    """The cloud graph computed logits that are infinite or not numbers."""


class EngineChoiceError(EdgeCloudError):
    """A provider or precision that does not exist, or that the bundle or the provider lacks."""


class TuneError(EdgeCloudError):
    """No engine could be chosen, or the choice could not be saved."""


class FeatureFileTypeError(EdgeCloudError):
    """The argument is not the bytes of a feature file, or not a list of them."""


class FeatureFileError(EdgeCloudError):
    """A feature file that is refused."""


class FeatureFileNotFoundError(FeatureFileError):
    """No file of that name."""


class EmptyFeatureFileError(FeatureFileError):
    """A feature file of zero bytes."""


class NotAFeatureFileError(FeatureFileError):
    """A file of another kind."""


class UnsupportedVersionError(FeatureFileError):
    """A feature file of a format version that this release does not know."""


class DamagedFeatureFileError(FeatureFileError):
    """A feature file whose bytes are not those that were written."""


class TruncatedFeatureFileError(DamagedFeatureFileError):
    """A feature file that ends early."""


class TrailingBytesError(DamagedFeatureFileError):
    """A feature file with more bytes than its header says."""


class WrongBundleError(FeatureFileError):
    """An intact feature file that another bundle wrote."""


class FeatureFileTooLargeError(FeatureFileError):
    """A file of more bytes than any feature file has."""


class TooManySymbolsError(FeatureFileError):
    """A feature file of a larger image than the bundle allows."""


class ParquetError(EdgeCloudError):
    """A Parquet file that is refused as a whole."""


class ParquetNotFoundError(ParquetError):
    """No file of that name."""


class DamagedParquetError(ParquetError):
    """A file that is not Parquet, or is truncated or damaged."""


class ParquetSchemaError(ParquetError):
    """A Parquet file without the columns that hold feature files."""


class ParquetTooLargeError(ParquetError):
    """A Parquet file with a row group, or a key, over the size limit."""


class DamagedStreamError(EdgeCloudError):
    """Bytes that do not decode as a CompressAI stream under the given tables."""


class StreamShapeError(EdgeCloudError):
    """An image size for which no CompressAI stream exists."""


class RequestError(EdgeCloudError):
    """A request that the service refuses or cannot answer."""


class UnauthorizedError(RequestError):
    """A request without one of the service's tokens."""


class MalformedRequestError(RequestError):
    """A request that is not of the form its path requires."""


class UnsupportedEncodingError(RequestError):
    """A request body with a content encoding."""


class UnsupportedSharedMemoryError(RequestError):
    """A request to read or write tensors in shared memory."""


class HeadTooLargeError(RequestError):
    """A request line and headers over the size limit."""


class BodyTooLargeError(RequestError):
    """A request body over the size limit of its path."""


class TooManyFilesError(RequestError):
    """A request with more feature files than the limit."""


class SlowBodyError(RequestError):
    """A request body that did not arrive in time."""


class ClientGoneError(RequestError):
    """The client disconnected before it was answered."""


class UnknownModelError(RequestError):
    """No served bundle has that name or fingerprint."""


class PageNotBuiltError(RequestError):
    """The service is installed without its page for browsers."""


class NoEdgeHalfError(RequestError):
    """No served bundle has the files with which a browser encodes."""


class QueueFullError(RequestError):
    """More requests than can be answered in time. `seconds` says when to try again."""

    def __init__(self, message: str, seconds: int):
        super().__init__(message)
        self.seconds = seconds


class StartingError(RequestError):
    """The service is still loading its bundles."""


class DrainingError(RequestError):
    """The service is shutting down."""


class DeadlineError(RequestError):
    """A request whose deadline passed before its graph call."""


class GraphFailedError(RequestError):
    """The cloud graph failed, or gave logits that are not numbers."""


class ServedBundlesError(EdgeCloudError):
    """Bundles that cannot be served side by side."""


class TokenFileError(EdgeCloudError):
    """A token file without a usable token."""


class TablesError(EdgeCloudError):
    """Entropy tables that break a rule and cannot be used."""


class RatesError(EdgeCloudError):
    """Rate levels that break a rule and cannot be used."""


class BundleError(EdgeCloudError):
    """A bundle that cannot be used."""


class BundleNotFoundError(BundleError):
    """No bundle in that folder."""


class MissingBundleFileError(BundleError):
    """A bundle without one of its files."""


class AlteredBundleFileError(BundleError):
    """A file of the bundle is not the one that was exported."""


class InconsistentBundleError(BundleError):
    """A bundle whose parts contradict each other, or whose manifest is invalid."""


class NoContextTablesError(BundleError):
    """Small files are asked for, and the bundle has no context tables."""


class FixedRateError(BundleError):
    """A rate level or a number of bytes is asked of a bundle with one rate."""


class NoCompressAiStreamError(BundleError):
    """A stream of CompressAI is asked of a variable-rate bundle, which has no tables for it."""


class NoEmbeddingError(BundleError):
    """Embeddings are asked of a bundle whose cloud graph, of an earlier release, has none."""


class UnsupportedBundleError(BundleError):
    """A bundle of a schema or format version that this release does not know."""


class RayError(EdgeCloudError):
    """An error of the Ray application or of bulk decoding on Ray."""


class RayClusterError(RayError):
    """No Ray cluster can be reached or started, or it failed during the work."""


class RayArgumentsError(RayError):
    """Unknown or invalid arguments of the Ray Serve application."""


class SpoolError(EdgeCloudError):
    """A spool that cannot do what was asked."""


class SpoolInUseError(SpoolError):
    """Another process uses the spool."""


class SpoolFullError(SpoolError):
    """A feature file would exceed the spool's size limit."""


class SpoolDiskError(SpoolError):
    """The spool's disk is full or fails."""


class DamagedSpoolFileError(SpoolError):
    """A file of the spool is not as it was written."""


class DamagedResultsError(SpoolError):
    """A line of the results is not as it was written."""


class SendError(EdgeCloudError):
    """Nothing can be sent with these settings."""


class ServerUrlError(SendError):
    """A URL that cannot be posted to."""


class CertificateFileError(SendError):
    """A certificate or key file that TLS cannot use."""


class ProxySettingError(SendError):
    """An invalid proxy in the environment variables."""


class ServerAwayError(SendError):
    """The server does not answer, or is busy, for now."""


class ServerSetupError(SendError):
    """The server would refuse every file with these settings."""
