"""Changes to a bundle's files that keep the hashes in its manifest correct."""

import hashlib
import json
from pathlib import Path


def put(folder: Path, name: str, data: bytes) -> None:
    """Replace a file of a bundle, and its hash in the manifest, as an attacker could.

    Deletes each old file first, because it may be a hard link to the original bundle's file.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / name).unlink()
    (folder / name).write_bytes(data)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
