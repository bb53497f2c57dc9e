"""The command ``mesh``: the one place in meshlib that reads the process's arguments, environment and streams."""

import os
import sys

from meshlib.cli.main import run


def main() -> int:
    """Run the command line of this process; returns the exit status."""
    return run(sys.argv[1:], os.environ, sys.stdout, sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
