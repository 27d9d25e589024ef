"""Benchmarks: ``python -m tests.bench``. Each measures vbfmt and a reference, such as PEFT, in one
run, and gives their ratio."""
