"""Brain volumes to a snapshot: data, networks, losses and the two training stages. Run from a checkout."""

import getpass
import os

# MONAI asks for the user's name when it is imported, and a process of `docker run -u 12345` has none.
try:
    getpass.getuser()
except (KeyError, OSError):  # OSError from Python 3.13 on
    os.environ["LOGNAME"] = f"uid_{os.getuid()}"
