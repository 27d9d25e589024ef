"""The commands as functions: `vbfmt.pack`, `vbfmt.unpack`, `vbfmt.expand`, `vbfmt.merge`.

Each reads packed files, checkpoints or repositories on the Hub, checks as much as it can before it
writes, and writes the whole output or nothing. The command line parses arguments, calls one of
these functions, and prints the result.
"""
