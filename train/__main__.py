"""``python -m train``."""

import sys

from bqjax.cli.freed_memory import keep_freed_memory
from train.main import main

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
