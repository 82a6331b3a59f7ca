"""Programs that some tests need and a contributor's machine may lack."""

import os
import shutil

import pytest


def needed(tool: str, package: str) -> str:
    """Path of a program. Without it the test is skipped, except in CI, which must have it."""
    found = shutil.which(tool)
    if not found:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have {tool}")
        pytest.skip(f"no {tool}: apt-get install {package}")
    return found
