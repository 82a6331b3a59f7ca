"""python -m export MODEL: from a checkpoint to a verified bundle."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
