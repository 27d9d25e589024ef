"""Processes that are killed, that reach limits of the system, or that write one path concurrently.

``python -m tests.crashes SCENE FOLDER [COUNT]`` prints the results as JSON, and fails if anything
is wrong. It is a separate process because it forks, which is safe only if no thread has been
started.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.crashes import kills, limits, races

SCENES = {
    scene.__name__: scene
    for scene in (
        kills.kill,
        kills.store_writers,
        kills.jobs_killed,
        kills.pool_killed,
        limits.size_limit,
        limits.memory,
        limits.address_space,
        limits.read_only,
        limits.cut_off,
        limits.disk_full,
        races.writers,
        races.first_wins,
        races.folders,
    )
}


def main(what: str, folder: str, count: str = "20") -> None:
    """Run one scene."""
    print(json.dumps(SCENES[what](Path(folder), int(count))))


if __name__ == "__main__":
    main(*sys.argv[1:])
