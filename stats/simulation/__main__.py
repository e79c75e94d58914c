"""`python -m stats.simulation`."""

import sys

from stats.simulation.runner import main

if __name__ == "__main__":
    sys.exit(main())
