"""JSON from untrusted files."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbfmt._format import strict_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_valid_json_is_read_as_by_the_standard_library(value):
    text = json.dumps(value)
    assert strict_json.parse_object(text) == json.loads(text)
    assert strict_json.is_object(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "not an object"),
        ('"a"', "not an object"),
        ('{"a":NaN}', "NaN is not JSON"),
        ('{"a":-Infinity}', "-Infinity is not JSON"),
        ('{"a":{"b":1,"b":1}}', "a duplicate key"),
        ('{"a":' + "9" * 1001 + "}", "too many digits"),
        ('{"a":' * 65 + "1" + "}" * 65, "too deep"),
        ('{"a":' + "[" * 10**6, "too deep"),
        ("{} {}", "Extra data"),
    ],
)
def test_invalid_json_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        strict_json.parse_object(text)
    assert not strict_json.is_object(text)


@pytest.mark.parametrize("number", ["1e400", "-1e999", "1" * 400 + ".0"])
def test_a_number_beyond_float64_is_well_formed_but_refused(number):
    text = f'{{"a":{number}}}'
    with pytest.raises(ValueError, match="too large for a float"):
        strict_json.parse_object(text)
    assert strict_json.is_object(text)


def test_the_limits_themselves_are_allowed():
    assert strict_json.is_object('{"a":' + "9" * 1000 + "}")
    assert strict_json.is_object('{"a":' * 64 + "1" + "}" * 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not an object"),
        ('{"a":' + "[" * 64 + "]" * 64 + "}", "nesting is too deep"),
        ("[" * 100_000, "nesting is too deep"),
        ('{"a":' + "1" * 1001 + "}", "an integer with too many digits"),
        ('{"a":1,"a":1}', "a duplicate key"),
        ('{"a":' + "9" * 400 + ".0}", f"{'9' * 20} is too large for a float"),
    ],
    ids=range(6),
)
def test_messages_are_short(text, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        strict_json.parse_object(text)


@pytest.mark.parametrize("number", ["-0", "-1", "-" + "9" * 30, "9" * 1001])
def test_a_number_with_a_sign_is_not_a_size(number):
    text = f'{{"a":[{number}]}}'
    message = f"{number[:20]} is not a size$" if number.startswith("-") else "too many digits"
    with pytest.raises(ValueError, match=message):
        strict_json.parse_object(text, sizes=True)


def test_sizes_are_whole_numbers():
    assert strict_json.parse_object('{"a":[0,12]}', sizes=True) == {"a": [0, 12]}
    assert strict_json.parse_object('{"a":-12}') == {"a": -12}
