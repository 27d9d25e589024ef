"""The commands as functions: `vbfmt.pack`, `vbfmt.unpack`, `vbfmt.expand`, `vbfmt.merge`.

Each reads paths, checkpoints or repositories on the Hub, checks all that it can before it writes,
and writes its output whole or not at all. The command line parses words, calls one of these, and
prints what it returns.
"""
