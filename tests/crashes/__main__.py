"""Processes that are killed, run into limits, or write one path at once.

``python -m tests.crashes SCENE FOLDER [COUNT]`` prints what was seen as JSON, and fails if anything
was wrong. It is a process of its own, so that it may fork: nothing here has started a thread.
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
