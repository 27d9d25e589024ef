"""Numbers are little-endian in every file, on machines of any byte order."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from spec.golden.make import GOLDEN
from tests.conftest import ROOT
from tests.mirror import some_logits
from vbfmt import Adapter, Module, errors
from vbfmt._math.admixture import rows_from_selection
from vbfmt._math.selection import select_top_k

# PyTorch has only the machine's byte order, and the other folders write no files of the format.
ELSEWHERE = ("vbfmt/torch", "vbfmt/plot", "vbfmt/cli", "vbfmt/estimate")
SOURCES = [
    path
    for folder in ("vbfmt", "converters")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.relative_to(ROOT).as_posix().startswith(ELSEWHERE)
]

_DTYPE = re.compile(r"[<>=|]?[fiuc](2|4|8|16)")
_AS_BYTES = {"view", "frombuffer", "fromfile", "memmap", "fromstring"}
_NATIVE = re.compile(r"(float|int|uint|complex)(16|32|64|128)|intp|single|double|half")

# A pickle's floats are big-endian on every machine.
_PICKLE = ("converters/_files/state_dict_program.py", ">d")
# This file views floats as integers and back in one line, so the order has no effect.
_ROUND_TRIPS = {"converters/merge/rounding.py"}


def nodes(kind):
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kind):
                yield f"{path.relative_to(ROOT).as_posix()}:{node.lineno}", node


def name_of(function):
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def test_sources_and_dtypes_are_found():
    assert len(SOURCES) > 40
    assert sum(1 for _, node in nodes(ast.Constant) if is_dtype(node.value)) >= 25


def is_dtype(value):
    return isinstance(value, str) and _DTYPE.fullmatch(value) is not None


def test_every_dtype_of_several_bytes_names_its_byte_order():
    wrong = [
        f"{place} {node.value!r}"
        for place, node in nodes(ast.Constant)
        if is_dtype(node.value)
        and not node.value.startswith("<")
        and (place.split(":")[0], node.value) != _PICKLE
    ]
    assert wrong == []


def test_every_struct_names_its_byte_order():
    calls = {"Struct", "pack", "unpack", "pack_into", "unpack_from", "iter_unpack", "calcsize"}
    formats = [
        (place, node.args[0].value)
        for place, node in nodes(ast.Call)
        if name_of(node.func) in calls
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ]
    assert len(formats) >= 3
    others = [(place.split(":")[0], form) for place, form in formats if not form.startswith("<")]
    assert set(others) <= {_PICKLE}


def test_bytes_are_never_read_as_numbers_in_the_machines_byte_order():
    wrong = []
    for place, node in nodes(ast.Call):
        if name_of(node.func) not in _AS_BYTES or place.split(":")[0] in _ROUND_TRIPS:
            continue
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            if isinstance(argument, ast.Attribute) and _NATIVE.fullmatch(argument.attr):
                wrong.append(f"{place} {ast.unparse(node)}")
    assert wrong == []


def test_a_big_endian_machine_writes_and_reads_the_same():
    """See tests/mirror.py. It found two sums whose results were in the machine's byte order."""
    command = [sys.executable, "-m", "tests.mirror"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.pop("turned") >= 20
    rows = rows_from_selection(select_top_k({"m": some_logits()}, 3), 300)
    assert result.pop("rows") == [rows.indices.tolist(), rows.weights.tolist()]
    assert result == dict.fromkeys([*GOLDEN, "packed from logits"], True)


@pytest.mark.parametrize("part", ["bank", "indices", "weights"])
def test_big_endian_arrays_are_refused(part):
    fields = {
        "bank": np.ones((300, 2), dtype="<f4"),
        "indices": np.array([[0, 1]] * 3, dtype="<u2"),
        "weights": np.full((3, 1), 0.25, dtype="<f4"),
        "modules": (Module("m", 4, 2, 1),),
    }
    assert Adapter(**fields).N == 3
    fields[part] = fields[part].astype(fields[part].dtype.newbyteorder(">"))
    with pytest.raises(errors.ContentError, match=f"wrong dtype, shape or order: {part}"):
        Adapter(**fields)
