"""The command line as a module: ``python -m vbfmt``."""

from vbfmt.cli import main

if __name__ == "__main__":
    main()
