"""``python -m bqjax``."""

import sys

from bqjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
