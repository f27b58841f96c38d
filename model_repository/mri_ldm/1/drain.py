"""`python drain.py FOLDER`: let the models of a running server finish, so that it can be stopped next."""

import sys

from mri_ldm.drain import main

if __name__ == "__main__":
    sys.exit(main())
