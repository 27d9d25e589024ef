"""``make architectures``: check a tiny model of every architecture of the installed transformers.

python -m tests.architectures [--only REGEX] [--json FILE] [--table FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import asdict

_SECONDS = 240


def main() -> None:
    """Check one architecture after the other, and write the results as JSON lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--json", default="build/architectures.jsonl")
    parser.add_argument("--table")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    import torch

    from tests.architectures import check, table, tiny

    torch.set_num_threads(1)
    os.makedirs(os.path.dirname(arguments.json) or ".", exist_ok=True)
    signal.signal(signal.SIGALRM, _too_long)
    results = []
    with open(arguments.json, "w") as stream, check.quiet():
        for task, _, name in tiny.architectures():
            if not re.search(arguments.only, name):
                continue
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                signal.alarm(_SECONDS)
                try:
                    result = check.check(task, name, folder)
                except TimeoutError as error:
                    result = check.Result(name, task, {}, without=str(error))
                finally:
                    signal.alarm(0)
            results.append(result)
            stream.write(json.dumps(asdict(result)) + "\n")
            stream.flush()
            what = result.without or "; ".join(f"{k} {v}" for k, v in result.steps.items())
            print(f"{time.monotonic() - started:5.1f} s  {name}  {what}", flush=True)
    if arguments.table:
        with open(arguments.table, "w") as stream:
            stream.write(table.text(results))


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {_SECONDS} s")


if __name__ == "__main__":
    sys.exit(main())
