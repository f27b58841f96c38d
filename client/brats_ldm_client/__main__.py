"""`python -m brats_ldm_client` is the command `brats-ldm`."""

import sys

from ._cli import main

if __name__ == "__main__":
    sys.exit(main())
