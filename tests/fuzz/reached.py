"""The coverage of the fuzzer: ``python -m tests.fuzz.reached [FOLDER]``.

Runs every target on the inputs that `python -m tests.fuzz` has kept, and prints the covered lines
and branches. The exit status is 1 if the share is less than `LOWEST`, or if a target has no
inputs."""

from __future__ import annotations

import sys
from pathlib import Path

import coverage

READERS = (
    "vbfmt/adapter.py",
    "vbfmt/_math/admixture.py",
    "vbfmt/_format/canonical.py",
    "vbfmt/_format/container.py",
    "vbfmt/_format/header.py",
    "vbfmt/packed.py",
    "vbfmt/_format/rules.py",
    "vbfmt/_math/selection.py",
    "vbfmt/_format/strict_json.py",
    "vbfmt/tensors.py",
    "converters/_files/checkpoint.py",
    "converters/_files/pickle.py",
    "converters/_files/safetensors.py",
    "converters/_files/state_dict_objects.py",
    "converters/_files/state_dict_program.py",
    "converters/_files/zip_records.py",
    "converters/gguf/base.py",
    "converters/gguf/metadata.py",
    "converters/merge/base.py",
    "converters/merge/paths.py",
    "converters/merge/side_files.py",
    "converters/peft/folder.py",
    "converters/peft/config.py",
    "converters/peft/keys.py",
    "converters/peft/rows.py",
    "converters/peft/skeleton.py",
    "converters/unilora.py",
)

LOWEST = 80
"""Percentage. The rest is mostly errors about wrong calls, which no file can cause."""


def main() -> int:
    """See the module's docstring."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/fuzz")
    measured = coverage.Coverage(branch=True, include=READERS, data_file=None, config_file=False)
    measured.start()
    from tests.fuzz.targets import TARGETS

    inputs = dict.fromkeys(TARGETS, 0)
    for name, target in TARGETS.items():
        for file in sorted(folder.glob(f"corpus-{name}/*")):
            target.run(file.read_bytes())
            inputs[name] += 1
    measured.stop()
    if not all(inputs.values()):
        print(f"targets without inputs in {folder}: {inputs}")
        return 1
    print(f"{inputs} inputs of {folder} reach:")
    share = measured.report(show_missing=True)
    print(f"{share:.1f} %, at least {LOWEST} % wanted")
    return int(share < LOWEST)


if __name__ == "__main__":
    sys.exit(main())
