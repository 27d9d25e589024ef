"""Whether the tests that SECURITY.md names would fail if what it says were false:
``python -m tests.claims [WORD]`` breaks the code in a copy, one line at a time, and runs the test.

1 if a test passes all the same, or if a line to break is not found. WORD chooses tests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_COPIED = ("pyproject.toml", "vbfmt", "converters", "spec", "tests", "SECURITY.md")


class Break(NamedTuple):
    """A test that SECURITY.md names, and a change that makes its claim false."""

    test: str
    file: str
    old: str
    new: str


BREAKS = [
    Break(*words)
    for words in (
        (
            "cli/test_messages.py::test_no_command_lets_a_file_write_on_the_terminal",
            "vbfmt/cli/show.py",
            "click.echo(printable(text), file",
            "click.echo(text, file",
        ),
        (
            "cli/test_messages.py::test_what_turns_text_around_is_escaped_in_the_json_that_is_written",
            "vbfmt/_files/json_file.py",
            "line if line.isprintable() else _escaped(line)",
            "line",
        ),
        (
            "cli/test_hostile.py::test_a_json_file_without_end_is_not_read",
            "vbfmt/_files/json_file.py",
            "if len(data) > LONGEST:",
            "if False:",
        ),
        (
            "cli/test_hostile.py::test_an_index_of_a_base_that_leads_elsewhere_is_refused",
            "converters/merge/base.py",
            "os.path.basename(name) != name",
            "False",
        ),
        (
            "cli/test_hostile.py::test_code_beside_a_base_is_neither_run_nor_asked_about",
            "converters/peft/skeleton.py",
            "trust_remote_code=False",
            "trust_remote_code=True",
        ),
        (
            "cli/test_hostile.py::test_what_was_loaded_does_not_follow_the_file",
            "vbfmt/_files/storage.py",
            "_read_descriptor(file, path, mmap=mmap)",
            "_read_descriptor(file, path, mmap=True)",
        ),
        (
            "cli/test_hostile.py::test_whatever_is_invalid_is_refused_by_every_command",
            "vbfmt/_format/container.py",
            "if found != stored:",
            "if False:",
        ),
        (
            "spec/test_corpus.py::test_invalid",
            "vbfmt/_format/container.py",
            "if reserved:",
            "if False:",
        ),
        (
            "test_errors.py::test_a_name_of_a_million_bytes_in_a_packed_file_is_one_short_line",
            "vbfmt/errors.py",
            "LONGEST_PIECE = 200",
            "LONGEST_PIECE = 2_000_000",
        ),
        (
            "converters/files/test_pickle.py::test_a_record_of_another_length_than_claimed",
            "converters/_files/pickle.py",
            "if content is None or len(content) != described.size:",
            "if content is None:",
        ),
        (
            "converters/files/test_pickle.py::test_a_row_of_pickles_that_leaves_storages_out",
            "converters/_files/pickle.py",
            "or set(keys) != set(storages)",
            "",
        ),
        (
            "converters/files/test_pickle.py::test_compressed_records_are_refused",
            "converters/_files/zip_records.py",
            "if method or stored != size:",
            "if False:",
        ),
        (
            "converters/files/test_pickle.py::test_many_names_for_one_storage_are_refused",
            "converters/_files/pickle.py",
            "_MOST_TIMES = 4",
            "_MOST_TIMES = 4_000_000",
        ),
        (
            "converters/files/test_pickle.py::test_elements_that_are_not_stored_are_refused",
            "converters/_files/pickle.py",
            "if _length(view) > len(content):",
            "if False:",
        ),
        (
            "converters/files/test_safetensors.py::test_refused",
            "converters/_files/safetensors.py",
            ", sizes=True)",
            ")",
        ),
        (
            "format/test_strict_json.py::test_refused",
            "vbfmt/_format/strict_json.py",
            "if len(result) != len(pairs):",
            "if False:",
        ),
        (
            "converters/merge/test_paths.py::test_a_link_that_leaves_the_base_is_refused_unless_asked_for",
            "converters/merge/paths.py",
            "if self.home is not None and",
            "if False and",
        ),
        (
            "converters/merge/test_paths.py::test_what_has_another_size_than_it_says_is_not_copied",
            "converters/merge/paths.py",
            "if left or not stat.S_ISREG(status.st_mode) or stream.read(1):",
            "if False:",
        ),
        (
            "converters/merge/test_paths.py::test_an_alias_of_the_base_is_the_base",
            "converters/merge/paths.py",
            "return found.st_dev, found.st_ino",
            "return hash(path), 0",
        ),
        (
            "converters/merge/test_paths.py::test_links_into_the_hubs_cache_are_followed",
            "converters/merge/paths.py",
            'return repository if name == "snapshots"',
            'return path if name == "snapshots"',
        ),
        (
            "converters/merge/test_paths.py::test_a_base_within_the_output_is_not_replaced",
            "converters/merge/refusals.py",
            "if within(base, inner):",
            "if False:",
        ),
        (
            "converters/test_peft_refusals.py::test_a_config_cannot_name_code_to_import",
            "converters/peft/config.py",
            "config.pop(NAMES_CODE, None)",
            "config.pop('x', None)",
        ),
        (
            "files/test_storage.py::test_a_replaced_file_keeps_its_permissions",
            "vbfmt/_files/storage.py",
            "os.fchmod(new, mode)",
            "pass",
        ),
        (
            "files/test_folders.py::test_a_private_folder_is_private_while_it_is_replaced",
            "vbfmt/_files/staging.py",
            "return usual & 0o700",
            "return usual",
        ),
        (
            "files/test_storage.py::test_a_new_file_has_the_permissions_of_the_umask",
            "vbfmt/_files/staging.py",
            "_mode(target, 0o666)",
            "_mode(target, 0o600)",
        ),
        (
            "format/test_rules.py::test_the_bank_is_finite",
            "vbfmt/_format/rules.py",
            "_BadRows.of(~np.isfinite(bank).all(axis=1))",
            "_BadRows.of(np.isnan(bank).all(axis=1) & False)",
        ),
        (
            "plot/test_html.py::test_names_from_files_stay_text",
            "vbfmt/plot/html.py",
            "<title>{html.escape(title)}</title>",
            "<title>{title}</title>",
        ),
        (
            "test_packed.py::test_every_flipped_bit_is_found_and_named",
            "vbfmt/_format/container.py",
            "if found != section.sha256:",
            "if False:",
        ),
        (
            "test_packed.py::test_every_appended_byte_is_found",
            "vbfmt/_format/container.py",
            "if len(data) != file_length:",
            "if len(data) < file_length:",
        ),
        (
            "test_packed.py::test_a_trusted_digest_shows_what_the_files_own_checksums_cannot",
            "vbfmt/packed.py",
            "if digest is not None and packed.digest != digest:",
            "if False:",
        ),
        (
            "test_patterns.py::test_a_pattern_that_takes_too_long_is_one_error",
            "vbfmt/_patterns.py",
            ", timeout=TIME)",
            ", timeout=1e9)",
        ),
        (
            "test_faults.py::test_whatever_fails_the_old_or_the_new_is_there",
            "vbfmt/_files/storage.py",
            "os.fsync(stream.fileno())",
            "os.remove(target) if os.path.isfile(target) else None",
        ),
        (
            "converters/vllm/test_folder.py::test_a_link_out_of_the_folder_finds_nothing",
            "converters/vllm/folder.py",
            "os.path.commonpath([real, self._real]) != self._real or ",
            "",
        ),
        (
            "converters/vllm/test_folder.py::test_a_name_that_is_no_component_of_a_path_finds_nothing",
            "converters/vllm/folder.py",
            "if not _is_component(name):",
            "if False:",
        ),
        (
            "converters/test_rescued.py::test_negative_remainders_at_k_4",
            "converters/peft/rows.py",
            "if rescued.size:",
            "if False:",
        ),
    )
]


def main() -> int:
    """See the module's own text."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for part in _COPIED:
            source = ROOT / part
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, copy / part)
        chosen = [each for each in BREAKS if word in each.test]
        if _run(copy, *(each.test for each in chosen)) != 0:
            print("some of these tests fail before anything is broken")
            return 1
        for each in chosen:
            found = outcome(each, copy)
            wrong += found != "fails"
            print(f"{found:>10}  tests/{each.test}  {each.file}: {each.old}", flush=True)
    print(f"{wrong} of them do not show that their claim is false")
    return int(wrong > 0)


def outcome(broken: Break, copy: Path) -> str:
    """``fails`` if the test notices the change, ``passes``, or ``not found``."""
    path = copy / broken.file
    text = path.read_text()
    if broken.old not in text:
        return "not found"
    path.write_text(text.replace(broken.old, broken.new, 1))
    try:
        status = _run(copy, broken.test)
    except subprocess.TimeoutExpired:
        return "fails"  # without an end: a limit is gone
    finally:
        path.write_text(text)
    return {0: "passes", 1: "fails"}.get(status, f"status {status}")


def _run(copy: Path, *tests: str) -> int:
    """The status of pytest."""
    named = [f"tests/{test}" for test in tests]
    command = [sys.executable, "-m", "pytest", "-qx", "-m", "", *named]
    done = subprocess.run(command, cwd=copy, capture_output=True, timeout=300, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
