"""The header: its canonical map, and all rules for it."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import msgpack
import pytest

from spec.golden.make import GOLDEN, wide_indices, worked_example
from tests import forge
from vbfmt import Module, dumps, errors, loads
from vbfmt._format.header import Header, decode

FILE = dumps(worked_example())
WIDE = dumps(wide_indices())


def refusal(data):
    with pytest.raises(errors.VbfmtError) as error:
        loads(data)
    return error.value


def setter(*path):
    *route, last = path[:-1]

    def change(header):
        for step in route:
            header = header[step]
        header[last] = path[-1]

    return change


WRONG = {
    "missing key": (lambda h: h.pop("k"), errors.HeaderError, "'k'"),
    "missing features": (lambda h: h.pop("required_features"), errors.HeaderError, "required"),
    "keys in another order": (lambda h: h.update(h=h.pop("h")), errors.HeaderError, "'b'"),
    "unknown key": (setter("zzz", 1), errors.HeaderError, "zzz"),
    "h is zero": (setter("h", 0), errors.ContentError, "h = 0"),
    "h too large": (setter("h", 65537), errors.ContentError, "65537"),
    "h negative": (setter("h", -1), errors.HeaderError, "a negative number"),
    "h a boolean": (setter("h", True), errors.HeaderError, "bool"),
    "h a string": (setter("h", "3"), errors.HeaderError, "str"),
    "h a float": (setter("h", 3.0), errors.HeaderError, "a float"),
    "b is zero": (setter("b", 0), errors.ContentError, "b = 0"),
    "b does not divide": (setter("b", 3), errors.ContentError, "multiple of b = 3"),
    "b enormous": (setter("b", 2**62), errors.ContentError, "multiple of b"),
    "k is zero": (setter("k", 0), errors.ContentError, "1 to 3"),
    "k above h": (setter("k", 4), errors.ContentError, "1 to 3"),
    "k not that of the sections": (setter("k", 3), errors.HeaderError, "9 bytes"),
    "no modules": (setter("modules", []), errors.ContentError, "no modules"),
    "modules a map": (setter("modules", {}), errors.HeaderError, "dict"),
    "module of four fields": (lambda h: h["modules"][0].pop(), errors.HeaderError, "found 4"),
    "module without a name": (setter("modules", 0, 0, ""), errors.ContentError, "name is empty"),
    "name with a control character": (
        setter("modules", 0, 0, "a\x1b[2J"),
        errors.ContentError,
        "control",
    ),
    "name too long": (setter("modules", 0, 0, "ä" * 513), errors.ContentError, "1024 bytes"),
    "rank is zero": (setter("modules", 0, 3, 0), errors.ContentError, "rank"),
    "rank enormous": (setter("modules", 0, 3, 2**63), errors.HeaderError, "expected"),
    "in_features is zero": (setter("modules", 0, 1, 0), errors.ContentError, "in_features"),
    "orientation a number": (setter("modules", 0, 4, 0), errors.HeaderError, "int"),
    "a name twice": (
        lambda h: h["modules"].append(list(h["modules"][0])),
        errors.ContentError,
        "appears twice",
    ),
    "names not in order": (
        lambda h: h["modules"].append(["k", 2, 2, 1, False]),
        errors.ContentError,
        "not sorted",
    ),
    "tensor of an unknown dtype": (
        lambda h: h["tensors"].append(["t", "F128", [1]]),
        errors.HeaderError,
        "F128",
    ),
    "tensor of a list as dtype": (
        lambda h: h["tensors"].append(["t", [], [1]]),
        errors.HeaderError,
        "wrong type",
    ),
    "tensor without a section": (
        lambda h: h["tensors"].append(["t", "F32", [1]]),
        errors.HeaderError,
        "number of sections",
    ),
    "tensor of an enormous shape": (
        lambda h: (
            h["tensors"].append(["t", "F32", [2**63, 2**63]]),
            h["sections"].append([192, 0, bytes(32)]),
        ),
        errors.HeaderError,
        "tensor t",
    ),
    "tensor of half a byte": (
        lambda h: (
            h["tensors"].append(["t", "F4", [1]]),
            h["sections"].append([192, 0, bytes(32)]),
        ),
        errors.HeaderError,
        "whole bytes, fewer than 2⁶³",
    ),
    "section of the wrong length": (setter("sections", 0, 1, 28), errors.HeaderError, "28 bytes"),
    "section at the wrong offset": (
        setter("sections", 1, 0, 128),
        errors.LayoutError,
        "offset 128",
    ),
    "sections that overlap": (setter("sections", 1, 0, 0), errors.LayoutError, "offset 0"),
    "section misaligned": (setter("sections", 1, 0, 24), errors.LayoutError, "offset 24"),
    "section past the end": (setter("sections", 2, 0, 2**63), errors.LayoutError, "weights"),
    "short digest": (setter("sections", 0, 2, b"x" * 31), errors.HeaderError, "31"),
    "digest as text": (setter("sections", 0, 2, "x" * 32), errors.HeaderError, "str"),
    "base model of three": (setter("base_model", [None] * 3), errors.HeaderError, "found 3"),
    "base model a number": (setter("base_model", [1, None]), errors.HeaderError, "int"),
    "config not JSON": (setter("config", "{"), errors.ContentError, "JSON"),
    "config a list": (setter("config", "[]"), errors.ContentError, "JSON"),
    "config with NaN": (setter("config", '{"a":NaN}'), errors.ContentError, "JSON"),
    "config with a key twice": (setter("config", '{"a":1,"a":2}'), errors.ContentError, "JSON"),
    "config nested 65 deep": (
        setter("config", '{"a":' + "[" * 64 + "]" * 64 + "}"),
        errors.ContentError,
        "JSON",
    ),
    "config nested too deeply": (
        setter("config", '{"a":' + "[" * 10**5 + "]" * 10**5 + "}"),
        errors.ContentError,
        "JSON",
    ),
    "config with a long integer": (
        setter("config", '{"a":' + "1" * 1001 + "}"),
        errors.ContentError,
        "JSON",
    ),
    "metadata a list": (setter("metadata", []), errors.HeaderError, "list"),
    "metadata of a number": (setter("metadata", {"a": 1}), errors.HeaderError, "int"),
    "metadata not in order": (
        setter("metadata", {"b": "", "a": ""}),
        errors.ContentError,
        "not sorted",
    ),
    "metadata without a name": (setter("metadata", {"": ""}), errors.ContentError, "name is empty"),
    "feature a number": (setter("optional_features", [1]), errors.HeaderError, "int"),
    "feature twice": (setter("optional_features", ["a", "a"]), errors.HeaderError, "twice"),
    "extension type": (setter("config", msgpack.ExtType(1, b"")), errors.HeaderError, "extension"),
    "nesting too deep": (
        setter("metadata", {"a": [[[[[[[[]]]]]]]]}),
        errors.HeaderError,
        "nesting",
    ),
}


@pytest.mark.parametrize("change", WRONG)
def test_invalid_headers_are_refused(change):
    edit, kind, message = WRONG[change]
    error = refusal(forge.with_header(FILE, edit))
    assert type(error) is kind
    assert message in str(error)


def test_the_limits_themselves_are_allowed():
    """These values are just within the limits that the table above exceeds."""
    deep = '{"a":' + "[" * 63 + "]" * 63 + "}"
    assert loads(forge.with_header(FILE, setter("config", deep))).config == deep
    digits = '{"a":' + "1" * 1000 + "}"
    assert loads(forge.with_header(FILE, setter("config", digits))).config == digits
    name = "ä" * 512
    assert name in loads(forge.with_header(FILE, setter("modules", 0, 0, name)))


NOT_CANONICAL = {
    "an integer in more bytes than needed": (b"\xa1h\x03", b"\xa1h\xcc\x03"),
    "a string with a longer length": (b"\xa5layer", b"\xd9\x05layer"),
    "an array with a longer length": (b"\xa7modules\x91", b"\xa7modules\xdc\x00\x01"),
    "a map with a longer length": (b"\x8b\xb1required", b"\xde\x00\x0b\xb1required"),
}


@pytest.mark.parametrize("what", NOT_CANONICAL)
def test_other_encodings_of_the_same_header_are_refused(what):
    header = FILE[32 : 32 + 243]
    usual, unusual = NOT_CANONICAL[what]
    assert usual in header
    changed = header.replace(usual, unusual, 1)
    assert msgpack.unpackb(changed) == msgpack.unpackb(header)
    error = refusal(forge.with_header_bytes(FILE, changed))
    assert error.what == "the header is not in canonical msgpack"


def test_a_repeated_key_is_refused():
    header = FILE[32 : 32 + 243].replace(b"\x8b\xb1", b"\x8c\xa1h\x03\xb1", 1)
    error = refusal(forge.with_header_bytes(FILE, header))
    assert error.what == "duplicate key"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x93",
        b"\x80\x80",
        b"\x90",
        b"\xa1\xff",
        b"\x81\xa1\xff\x00",
        b"\x91" * 5000,
        b"\x81\x01\x02",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
    ],
    ids=lambda header: header[:5].hex(),
)
def test_a_header_that_is_not_a_map_is_refused(header):
    assert isinstance(refusal(forge.with_header_bytes(FILE, header[:100])), errors.HeaderError)


def test_an_unknown_required_feature_is_reported_before_other_faults():
    def change(header):
        header["required_features"] = ["bank.elsewhere"]
        header["h"] = "not even a number"

    error = refusal(forge.with_header(FILE, change))
    assert type(error) is errors.FeatureError
    assert error.found == "'bank.elsewhere'"


def test_an_unknown_optional_feature_and_its_key_are_ignored():
    def change(header):
        header["optional_features"] = ["colour", "shade"]
        header["colour"] = {"red": [1, 2]}

    file = forge.with_header(FILE, change)
    assert loads(file) == worked_example()
    assert decode(forge.header_of(file), 0).optional_features == ("colour", "shade")


def test_a_higher_minor_version_may_add_keys_in_order():
    newer = forge.with_preamble(FILE, minor=7)
    assert loads(newer) == worked_example()
    added = forge.with_header(newer, lambda h: h.update(alpha=1, beta=None))
    assert loads(added) == worked_example()
    error = refusal(forge.with_header(newer, lambda h: h.update(beta=1, alpha=1)))
    assert error.what == "further keys are not in order"


def test_new_keys_are_in_the_order_of_their_utf8_bytes():
    newer = forge.with_preamble(FILE, minor=1)
    keys = ("", "A", "a", "é", "\uffff", "\U00010000")  # UTF-16 order swaps the last two
    added = forge.with_header(newer, lambda h: h.update(dict.fromkeys(keys)))
    assert loads(added) == worked_example()
    for first, second in itertools.pairwise(keys):
        wrong = forge.with_header(newer, lambda h, k=(second, first): h.update(dict.fromkeys(k)))
        assert refusal(wrong).what == "further keys are not in order"


def test_another_major_version_is_refused_with_both_numbers():
    error = refusal(forge.with_preamble(FILE, major=2, minor=3))
    assert type(error) is errors.VersionError
    assert (error.found, error.expected, error.advice) == ("version 2.3", "1.x", "update vbfmt")


def test_tensors_and_texts_round_trip():
    adapter = loads(WIDE)
    assert adapter.base_model == "example/größe"
    assert adapter.base_revision == "0123abc"
    assert dict(adapter.metadata) == {"author": "", "task": "κλῖμαξ"}
    assert adapter.tensors["score.weight"].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert adapter.tensors["h.0.mlp.c_fc.bias"].dtype == "BF16"
    assert adapter.tensors["empty"].numpy().shape == (0, 3)


def test_a_known_required_feature_is_accepted(monkeypatch):
    monkeypatch.setattr("vbfmt._format.header.KNOWN_FEATURES", frozenset(["bank.elsewhere"]))
    changed = forge.with_header(FILE, setter("required_features", ["bank.elsewhere"]))
    assert loads(changed) == worked_example()
    both = forge.with_header(FILE, setter("required_features", ["bank.elsewhere", "z"]))
    assert refusal(both).found == "'z'"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("b",), "2", "b: found str, expected int"),
        (("k",), [], "k: found list, expected int"),
        (("modules",), {}, "modules: found dict, expected list"),
        (("tensors",), None, "tensors: found NoneType, expected list"),
        (("sections",), 3, "sections: found int, expected list"),
        (("base_model",), "x", "base_model: found str, expected list"),
        (("modules", 0, 0), 1, "modules: found int, expected str"),
        (("modules", 0, 1), "1", "modules: found str, expected int"),
        (("modules", 0, 2), None, "modules: found NoneType, expected int"),
        (("modules", 0, 3), [], "modules: found list, expected int"),
        (("modules", 0, 4), 1, "modules: found int, expected bool"),
        (("tensors", 0), [1, "F32", []], "tensors: found int, expected str"),
        (("tensors", 0), ["t", 1, []], "tensors: found int, expected str"),
        (("tensors", 0), ["t", "F32", {}], "tensors: found dict, expected list"),
        (("tensors", 0), ["t", "F32", [True]], "tensors: found bool, expected int"),
        (("sections", 0, 0), "0", "sections: found str, expected int"),
        (("sections", 0, 1), b"0", "sections: found bytes, expected int"),
        (("base_model", 0), 1, "base_model: found int, expected str"),
        (("base_model", 1), b"", "base_model: found bytes, expected str"),
        (("config",), {}, "config: found dict, expected str"),
        (("metadata",), "", "metadata: found str, expected dict"),
        (("metadata", "a"), None, "metadata: found NoneType, expected str"),
        (("optional_features",), "", "optional_features: found str, expected list"),
        (("optional_features", 0), 1, "optional_features: found int, expected str"),
    ],
)
def test_a_wrong_type_is_named_with_its_part(path, value, message):
    def change(header):
        for step in path[:-1]:
            header = header[step]
        if isinstance(header, list) and path[-1] >= len(header):
            header.append(value)
        else:
            header[path[-1]] = value

    for minor in (0, 1):
        file = forge.with_header(forge.with_preamble(FILE, minor=minor), change)
        assert str(refusal(file)) == f"wrong type: header, {message}"


@pytest.mark.parametrize("name", GOLDEN)
def test_the_header_equals_the_golden_header(name, golden_folder):
    golden = (golden_folder / name).read_bytes()
    assert forge.header_of(dumps(GOLDEN[name]())) == forge.header_of(golden)


@pytest.mark.parametrize(("h", "bytes_each"), [(255, 1), (256, 1), (257, 2)])
def test_the_length_of_indices_follows_from_h(h, bytes_each):
    header = Header(h, 2, 3, (Module("m", 4, 6, 7),), (), ())
    assert header.rows == 35
    assert header.lengths() == [8 * h, 35 * 3 * bytes_each, 35 * 2 * 4]


def test_a_length_of_thousands_of_digits_is_one_line():
    """Python refuses to print such numbers."""

    def enormous(header):
        header["tensors"].append(["t", "U8", [2**64 - 1] * 300])
        header["sections"].append([192, 0, bytes(32)])

    with pytest.raises(errors.HeaderError, match="tensor t.*fewer than 2"):
        loads(forge.with_header(dumps(worked_example()), enormous))


def test_many_optional_features_take_little_time():
    """Earlier, each key was searched in a list, which took 8 s of CPU time for 20,000 keys."""
    names = [f"{i:05}" for i in range(20_000)]

    def declare(header):
        header["optional_features"] = names
        header.update(dict.fromkeys(names))

    data = forge.with_header(dumps(worked_example()), declare)
    start = time.process_time()
    assert loads(data) == worked_example()
    assert time.process_time() - start < 2


def test_values_of_unknown_keys_take_no_memory():
    """Keys that a later version may add are checked and skipped, never decoded."""

    def change(header):
        header["z"] = [[]] * 60_000

    file = forge.with_header(forge.with_preamble(FILE, minor=1), change)
    tracemalloc.start()
    try:
        assert loads(file) == worked_example()
        assert tracemalloc.get_traced_memory()[1] < 8 * len(file)
    finally:
        tracemalloc.stop()


def test_a_table_of_empty_rows_is_refused_before_it_is_decoded():
    file = forge.with_header(FILE, setter("modules", [[]] * 60_000))
    tracemalloc.start()
    try:
        assert refusal(file).what == "too many arrays and maps"
        assert tracemalloc.get_traced_memory()[1] < 8 * len(file)
    finally:
        tracemalloc.stop()
