"""`python -m medsyn VERB ...`: the same command line as `medsyn VERB ...`."""

import sys

from medsyn.cli import main

if __name__ == "__main__":
    sys.exit(main())
