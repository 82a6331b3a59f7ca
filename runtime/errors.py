"""Every refusal has a class of its own here, and its text names the value and the remedy.

Always holds: whatever an image, a feature file or a bundle contains, what comes out is a right
answer or one of these.
"""


class EdgeCloudError(Exception):
    """What all refusals of this package have in common."""


class MissingExtraError(EdgeCloudError):
    """An optional package that was asked for and is not installed."""


class OutputError(EdgeCloudError):
    """A file that cannot be written under the name that was given."""


class SameOutputError(OutputError):
    """Two inputs would become one output file, or an output would replace an input."""


class ClosedStreamError(EdgeCloudError):
    """Standard input or output is needed, and is closed."""


class ImageError(EdgeCloudError):
    """An image that cannot be encoded."""


class ImageNotFoundError(ImageError):
    """No file of that name."""


class ImageTypeError(ImageError):
    """What was given as an image is of a type that is none, or cannot be read."""


class NotAnImageError(ImageError):
    """A file that no image decoder recognises."""


class UnsupportedImageError(ImageError):
    """A kind of image file, or a variant of one, that no decoder here reads."""


class UnknownLevelsError(ImageError):
    """Levels of which nothing says what black and white are."""


class DamagedImageError(ImageError):
    """An image file that is cut short or damaged."""


class DecompressionBombError(ImageError):
    """An image of more pixels than is safe to decode."""


class ImageFileTooLargeError(ImageError):
    """More bytes on standard input, or in a pipe, than an image file has."""


class ImageTooSmallError(ImageError):
    """Under 8 pixels a side, with nothing to resize it."""


class ImageTooLargeError(ImageError):
    """More pixels than the bundle allows."""


class ImageArrayError(ImageError):
    """Not a uint8 array of height x width x 3."""


class NotANumberError(EdgeCloudError):
    """The edge graph computed a latent that is not a number."""


class NotFiniteLogitsError(EdgeCloudError):
    """The cloud graph computed logits that are infinite or not numbers."""


class EngineChoiceError(EdgeCloudError):
    """A provider or a precision that does not exist, does not go with the other, or is not in the bundle."""


class TuneError(EdgeCloudError):
    """No engine could be chosen, or the choice could not be kept."""


class FeatureFileTypeError(EdgeCloudError):
    """What was given as a feature file, or as several, is of another type."""


class FeatureFileError(EdgeCloudError):
    """A feature file that is refused."""


class FeatureFileNotFoundError(FeatureFileError):
    """No file of that name."""


class EmptyFeatureFileError(FeatureFileError):
    """A file of no bytes."""


class NotAFeatureFileError(FeatureFileError):
    """A file of another kind."""


class UnsupportedVersionError(FeatureFileError):
    """A feature file of a format version that this release does not know."""


class DamagedFeatureFileError(FeatureFileError):
    """Bytes are not those that were written."""


class TruncatedFeatureFileError(DamagedFeatureFileError):
    """The file ends early."""


class TrailingBytesError(DamagedFeatureFileError):
    """The file goes on after its end."""


class WrongBundleError(FeatureFileError):
    """An intact feature file that another bundle wrote."""


class FeatureFileTooLargeError(FeatureFileError):
    """More bytes than a feature file has."""


class TooManySymbolsError(FeatureFileError):
    """A feature file of a larger image than the bundle allows."""


class ParquetError(EdgeCloudError):
    """A Parquet file that is refused as a whole."""


class ParquetNotFoundError(ParquetError):
    """No file of that name."""


class DamagedParquetError(ParquetError):
    """A file that is no Parquet file, or is cut short or damaged."""


class ParquetSchemaError(ParquetError):
    """A Parquet file without the columns that feature files are in."""


class ParquetTooLargeError(ParquetError):
    """A Parquet file with a row group, or a key, of a size that nobody writes."""


class DamagedStreamError(EdgeCloudError):
    """Bytes that are no rANS stream of CompressAI's under the tables."""


class StreamShapeError(EdgeCloudError):
    """Pixels of which a stream of CompressAI's cannot be."""


class RequestError(EdgeCloudError):
    """A request that the service refuses, or cannot answer."""


class UnauthorizedError(RequestError):
    """A request without one of the service's tokens."""


class MalformedRequestError(RequestError):
    """A request that is not built as its path asks."""


class UnsupportedEncodingError(RequestError):
    """A body that is compressed on its way."""


class UnsupportedSharedMemoryError(RequestError):
    """Tensors that are to be read from, or written to, memory that the client shares with a server."""


class HeadTooLargeError(RequestError):
    """A request line and headers of more bytes than are taken."""


class BodyTooLargeError(RequestError):
    """More bytes than any request of that path has."""


class TooManyFilesError(RequestError):
    """More feature files in one request than are taken."""


class SlowBodyError(RequestError):
    """A body that did not come in time."""


class ClientGoneError(RequestError):
    """The client went before it was answered."""


class UnknownModelError(RequestError):
    """A name, or a fingerprint, of which no bundle is served."""


class QueueFullError(RequestError):
    """More is asked than can be answered in time. `seconds` is when to ask again."""

    def __init__(self, message: str, seconds: int):
        super().__init__(message)
        self.seconds = seconds


class StartingError(RequestError):
    """The service still loads its bundles."""


class DrainingError(RequestError):
    """The service is about to stop."""


class DeadlineError(RequestError):
    """A request whose time passed before its graph call."""


class GraphFailedError(RequestError):
    """The cloud graph failed, or gave logits that are not numbers."""


class ServedBundlesError(EdgeCloudError):
    """Bundles that cannot be served side by side."""


class TokenFileError(EdgeCloudError):
    """A file of tokens that has none, or none that can be used."""


class TablesError(EdgeCloudError):
    """Entropy tables that cannot be coded with."""


class BundleError(EdgeCloudError):
    """A bundle that cannot be used."""


class BundleNotFoundError(BundleError):
    """No bundle in that folder."""


class MissingBundleFileError(BundleError):
    """A bundle without one of its files."""


class AlteredBundleFileError(BundleError):
    """A bundle's file is not the one that was exported."""


class InconsistentBundleError(BundleError):
    """A bundle whose parts contradict each other, or whose manifest makes no sense."""


class NoContextTablesError(BundleError):
    """Small files are asked of a bundle without context tables."""


class NoEmbeddingError(BundleError):
    """Embeddings are asked of a bundle whose cloud graph, of an earlier release, has none."""


class UnsupportedBundleError(BundleError):
    """A bundle of a schema or format version that this release does not know."""


class RayError(EdgeCloudError):
    """What Ray is asked for cannot be done."""


class RayClusterError(RayError):
    """No Ray cluster can be reached or started, or it failed while it worked."""


class RayArgumentsError(RayError):
    """Arguments of the Ray Serve application that it does not have, or that make no sense."""


class SpoolError(EdgeCloudError):
    """A spool that cannot do what was asked."""


class SpoolInUseError(SpoolError):
    """Another process uses the spool."""


class SpoolFullError(SpoolError):
    """A feature file is too much for what the spool may hold."""


class SpoolDiskError(SpoolError):
    """The spool's disk is full, or fails."""


class DamagedSpoolFileError(SpoolError):
    """A file of the spool is not as it was written."""


class DamagedResultsError(SpoolError):
    """A line among the results is not as it was written."""


class SendError(EdgeCloudError):
    """Nothing can be sent as things are set up."""


class ServerUrlError(SendError):
    """Not a URL that can be posted to."""


class CertificateFileError(SendError):
    """A file that holds no certificates, or another that TLS is told to use and cannot."""


class ProxySettingError(SendError):
    """A proxy that the environment names, and that cannot be one."""


class ServerAwayError(SendError):
    """The server gives no answer, or has no time, for now."""


class ServerSetupError(SendError):
    """The server would take no file as things are set up."""
