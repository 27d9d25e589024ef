"""The commands as functions: `vbfmt.pack`, `vbfmt.unpack`, `vbfmt.expand`, `vbfmt.merge`.

Each function reads packed files, checkpoints or repositories on the Hub, checks as much as possible
before it writes, and writes the output completely or not at all. The command line parses arguments,
calls one of these functions, and prints the result.
"""
