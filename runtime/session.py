"""One way to open an onnxruntime session on a bundle's graph, and to batch for it."""

from collections.abc import Sequence

import onnxruntime as ort

from .bundle import Bundle
from .errors import InconsistentBundleError


def open_graph(bundle: Bundle, name: str, threads: int | None) -> ort.InferenceSession:
    """A CPU session on the bundle's file `name` with `threads` threads (None: one a core).

    Raises the BundleErrors of Bundle.read, and InconsistentBundleError when onnxruntime cannot
    load the graph or the graph is another bundle's.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads that spin take the core from the code that runs between two calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data = bundle.read(name)
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no public base
        raise InconsistentBundleError(f"onnxruntime cannot load {bundle.folder / name}: {error}") from error
    stamp = session.get_modelmeta().custom_metadata_map.get("fingerprint")
    if stamp != bundle.fingerprint.hex():
        raise InconsistentBundleError(
            f"{bundle.folder / name} is of bundle {str(stamp)[:8]}, the manifest of {bundle.fingerprint.hex()[:8]}: export the bundle again"
        )
    return session


def group_by_shape(shapes: Sequence[tuple[int, ...]], size: int) -> list[list[int]]:
    """Indexes of equal shapes together, at most `size` in a group."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    return [members[i : i + size] for members in groups.values() for i in range(0, len(members), size)]
