"""Measure what a shared bank keeps of LoRA's quality: ``python -m tests.examples.fleet``.

Four users have a task each: the polarity of sentences from film reviews, tweets, product reviews
and editorials, with BERT MiniLM. The same layers, sentences, batches and schedule are used for all
methods. Each result is saved when it is computed, so an interrupted run continues where it stopped.

Matrix products are in bfloat16 (autocast), parameters in float32; every run has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tests.data import train_minilm as task
from tests.examples.fleet import report
from tests.examples.fleet.methods import FILMS, METHODS
from tests.examples.fleet.runs import Job, done, is_done, jobs_of, results_in


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="One bank for many adapters, against LoRA.")
    parser.add_argument("folder", type=Path, help="where sentences, results and banks are kept")
    parser.add_argument("--seeds", type=int, default=6, help="runs of each (default 6)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="how many runs at a time"
    )
    parser.add_argument(
        "--report", action="store_true", help="train nothing: report the results that are there"
    )
    parser.add_argument("--table", type=Path, help="write the table as JSON to this file")
    parser.add_argument("--picture", type=Path, help="write the picture to this file (PNG)")
    return parser.parse_args()


def run_all(jobs: list[Job], processes: int, folder: Path) -> None:
    """Do the missing runs, print the progress, and save each result immediately."""
    results = results_in(folder)
    left = [job for job in jobs if not is_done(job, results)]
    print(f"{len(jobs) - len(left)} of {len(jobs)} runs are done already", flush=True)
    started = time.monotonic()
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        futures = {pool.submit(done, job): job for job in left}
        for count, future in enumerate(as_completed(futures), start=1):
            for result in future.result():
                with (folder / "results.jsonl").open("a") as file:
                    file.write(json.dumps(result) + "\n")
                print(
                    f"{result['method']:14} {result['kind']:10} seed {result['seed']}"
                    f"  {result['score']:.3f}  {result['seconds']:4.0f} s",
                    end="",
                )
                print(_time_left(count, len(left), started), flush=True)


def _time_left(count: int, total: int, started: float) -> str:
    minutes = (time.monotonic() - started) / count * (total - count) / 60
    return f"   {count} of {total}, {minutes:.0f} minutes left"


def main() -> None:
    """Train what is not trained yet, then print the table."""
    arguments = parse_arguments()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    jobs = list(jobs_of(arguments.methods, arguments.seeds, arguments.part, folder))
    if not arguments.report:
        if not any(folder.glob("vaderSentiment-*")):
            task.download_sdist(folder)
        # Runs that use the film reviews' bank start after it is trained.
        for later in (False, True):
            stage = [job for job in jobs if (METHODS[job.method].bank == FILMS) == later]
            if stage:
                run_all(stage, arguments.processes, folder)
    table = report.table_of(results_in(folder), jobs)
    print(report.as_markdown(table))
    if arguments.table:
        arguments.table.write_text(report.as_json(table))
    if arguments.picture:
        from tests.examples.fleet import picture  # matplotlib only where it is used

        picture.draw(table, arguments.picture)


if __name__ == "__main__":
    main()
