"""Errors about invalid sources: one line with what was found, and where."""

from __future__ import annotations

import json
import os
import warnings

import numpy as np
import pytest

from tests.converters.test_peft import CONFIG, KEY, logits_form, topk_form, write_folder
from vbfmt import load

BANK = "base_model.vblora_vector_bank"


@pytest.fixture
def message_about(vbfmt, tmp_path):
    """Pack a checkpoint with these arrays and this config, and return the error line from its part
    on."""

    def call(arrays, config=CONFIG):
        folder = write_folder(tmp_path / "bad", arrays, config)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = vbfmt("pack", folder, "-o", tmp_path / "x.vblora")
        assert (result.code, result.out) == (1, "")
        assert result.err.count("\n") == 1
        assert not (tmp_path / "x.vblora").exists()
        return result.err.replace(str(folder), "").rstrip().removeprefix("error: ")

    return call


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"topk": None},
            "logits do not show how many vectors are selected, and no config gives topk",
        ),
        ({"topk": "2"}, 'topk: found "2" from adapter_config.json, expected a whole number'),
        ({"num_vectors": "12"}, 'num_vectors: found "12" from adapter_config.json, expected a who'),
        ({"num_vectors": None}, "num_vectors: found null from adapter_config.json, expected a who"),
        ({"vector_length": True}, "vector_length: found true from adapter_config.json"),
        ({"num_vectors": 13}, "num_vectors: found 13 in adapter_config.json, expected 12"),
        (
            {"r": None},
            "not a size in /adapter_model.safetensors: r: found null from adapter_config",
        ),
        ({"r": "2"}, 'r: found "2" from adapter_config.json, expected a whole number'),
        ({"r": 3}, "layers.0.q: found 2 in A, 2 in B, expected r = 3"),
        ({"fan_in_fan_out": "false"}, 'fan_in_fan_out: found "false" in adapter_config.json, exp'),
        ({"peft_type": ["VBLORA"]}, 'peft_type: found ["VBLORA"], expected "VBLORA"'),
    ],
)
def test_values_of_a_config_are_shown_as_they_are_written(message_about, changes, expected):
    assert expected in message_about(logits_form(), CONFIG | changes)


def test_a_config_without_topk_is_not_reported_as_missing(message_about):
    config = {key: value for key, value in CONFIG.items() if key != "topk"}
    assert "there is no config" not in message_about(logits_form(), config)


def test_a_config_that_is_a_folder_is_not_ignored(vbfmt, tmp_path):
    folder = write_folder(tmp_path / "bad", topk_form(), config=None)
    (folder / "adapter_config.json").mkdir()
    result = vbfmt("pack", folder, "-o", tmp_path / "x.vblora")
    assert result.err == (
        f"error: not a config in {folder}/adapter_config.json: found a folder, expected a JSON "
        "file\n"
    )


def test_a_config_that_is_not_utf8_is_refused(vbfmt, tmp_path):
    folder = write_folder(tmp_path / "bad", logits_form())
    text = json.dumps(CONFIG | {"note": "?"}).encode().replace(b"?", b"\xff")
    (folder / "adapter_config.json").write_bytes(text)
    result = vbfmt("pack", folder, "-o", tmp_path / "x.vblora")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "not a JSON object in" in result.err
    assert "can't decode byte 0xff" in result.err


def test_weights_that_are_a_folder_are_reported_as_one(vbfmt, tmp_path):
    (tmp_path / "bad" / "adapter_model.safetensors").mkdir(parents=True)
    result = vbfmt("pack", tmp_path / "bad", "-o", tmp_path / "x.vblora")
    assert ": found adapter_model.safetensors (a folder), expected a file adapter_m" in result.err


@pytest.mark.parametrize("names", [("x", "y"), ("", "x")])
def test_two_adapters_in_the_same_modules_are_two_adapters(message_about, names):
    arrays = logits_form()
    named = {
        f"{key}.{name}".rstrip("."): array
        for name in names
        for key, array in arrays.items()
        if key != BANK
    }
    assert message_about({BANK: arrays[BANK], **named}) == (
        "more than one adapter in /adapter_model.safetensors: found "
        f"{', '.join(name or '(no name)' for name in names)}, expected one; "
        "save each adapter into its own folder"
    )


def test_a_repeated_index_is_reported_at_its_position_in_the_tensor(message_about):
    arrays = topk_form()
    indices = arrays[f"{KEY}.vblora_logits_B_topk_indices"]
    indices[1, 0] = 7  # B is (tile, rank), so this is row 2 of the tensor and row 1 of the factor
    assert message_about(arrays).endswith(
        f"{KEY}.vblora_logits_B_topk_indices, row 2: found 7, 7, expected 2 different vectors"
    )


@pytest.mark.parametrize(
    ("value", "found"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "minus infinity alone")]
)
def test_logits_that_are_not_finite_are_named(message_about, value, found):
    arrays = logits_form()
    arrays[f"{KEY}.vblora_logits_A"][1, 0] = value
    assert f"vblora_logits_A, row 2: found {found}, expected finite logits; " in message_about(
        arrays
    )


def test_a_bank_beyond_float32_is_one_line(message_about):
    arrays = logits_form(np.float64)
    arrays[BANK][3, 1] = 1e300
    assert ": vector bank: found 1e+300 in vector 3, expected finite numbers; " in message_about(
        arrays
    )


def test_a_tensor_without_values_in_a_pickle_is_one_line(vbfmt, tmp_path):
    torch = pytest.importorskip("torch")
    state = {key: torch.from_numpy(array) for key, array in logits_form().items()}
    state["base_model.model.head.weight"] = torch.empty(3, device="meta")
    torch.save(state, tmp_path / "bad.bin")
    result = vbfmt("pack", tmp_path / "bad.bin", "-o", tmp_path / "x.vblora", "--topk", 2)
    assert result.err.startswith("error: not a pickle of tensors only: refused in ")
    assert "meta" in result.err
    assert result.err.count("\n") == 1


def test_logits_at_the_limits_of_float64_pack_without_a_warning(vbfmt, tmp_path):
    arrays = logits_form(np.float64)
    arrays[f"{KEY}.vblora_logits_A"][0, 0] = -1e308
    arrays[f"{KEY}.vblora_logits_A"][0, 0, 5] = 1e308
    folder = write_folder(tmp_path / "far", arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = vbfmt("pack", folder, "-o", tmp_path / "x.vblora")
    assert result.code == 0
    assert "Warning" not in result.err
    adapter = load(tmp_path / "x.vblora")
    assert (adapter.indices[0, 0], adapter.weights[0, 0]) == (5, 0)


@pytest.mark.parametrize("more", [(), ("--rank", 1), ("--to", "mlx"), ("--dtype", "bfloat16")])
@pytest.mark.parametrize("weight", ["1e300", "-1e300", "1e39"])
def test_a_weight_that_makes_infinity_is_refused(vbfmt, tmp_path, packed, weight, more):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = vbfmt("expand", packed, "-o", tmp_path / "out", f"--weight={weight}", *more)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert "error: too large for float32: layers.0.q: found factors up to " in result.err
    assert "give smaller --weight" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("weight", "dtype"),
    [("1e-46", "float32"), ("-1e-300", "float32"), ("5e-324", "float32"), ("1e-7", "float16")],
)
def test_a_weight_that_rounds_an_adapter_away_is_refused(vbfmt, tmp_path, packed, weight, dtype):
    result = vbfmt("expand", packed, "-o", tmp_path / "out", f"--weight={weight}", "--dtype", dtype)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert f"error: too small for {dtype}: " in result.err
    assert ("give larger --weight" if dtype == "float32" else "give --dtype bf") in result.err
    assert not (tmp_path / "out").exists()


def test_a_weight_of_zero_is_accepted(vbfmt, tmp_path, packed):
    for dtype in ("float32", "float16", "bfloat16"):
        words = ("expand", packed, "-o", tmp_path / dtype, "--weight", 0, "--dtype", dtype)
        assert vbfmt(*words).code == 0


def test_factors_beyond_bfloat16_are_refused(vbfmt, tmp_path):
    """The bank has float32's largest number, which bfloat16 rounds to infinity."""
    arrays = logits_form()
    arrays[BANK][:] = np.finfo(np.float32).max
    folder = write_folder(tmp_path / "large", arrays)
    assert vbfmt("pack", folder, "-o", tmp_path / "x.vblora").code == 0
    words = ("expand", tmp_path / "x.vblora", "-o", tmp_path / "lora")
    result = vbfmt(*words, "--dtype", "bfloat16")
    assert "error: too large for bfloat16: " in result.err
    assert "give --dtype float32" in result.err
    assert not (tmp_path / "lora").exists()
    assert vbfmt(*words).code == 0


def test_the_histogram_of_weights_has_its_full_range_for_k_1(vbfmt, tmp_path):
    folder = write_folder(tmp_path / "one", topk_form(k=1), CONFIG | {"topk": 1})
    assert vbfmt("pack", folder, "-o", tmp_path / "x.vblora").code == 0
    out = vbfmt("inspect", tmp_path / "x.vblora").out
    assert "largest weight  mean 1; 0–0.2 0%, 0.2–0.4 0%, 0.4–0.6 0%, 0.6–0.8 0%, 0.8–1 100%" in out


def test_sub_vectors_with_equal_logits_are_counted(vbfmt, tmp_path):
    arrays = logits_form()
    arrays[f"{KEY}.vblora_logits_A"][:] = 0
    folder = write_folder(tmp_path / "tied", arrays)
    result = vbfmt("pack", folder, "-o", tmp_path / "x.vblora")
    assert result.err.startswith(
        "note: 4 of 10 sub-vectors have equal logits at the top-2 boundary; the lowest "
    )


def hostile(text):
    return any(not c.isprintable() and c != "\n" for c in text)


@pytest.fixture
def evil(vbfmt, tmp_path):
    """Return two packed files, and the checkpoint of the first. All names in them contain
    characters that reverse the direction of text on a terminal."""
    turned = "a\u202eb\u2066"
    arrays = {
        key.replace("layers.0.q", f"layers.0.{turned}"): a for key, a in logits_form().items()
    }
    arrays[f"base_model.model.{turned}.bias"] = np.ones(3, np.float32)
    files = []
    for number in (0, 1):
        key = "evil\x1b[2J\nkey\u202e"
        config = CONFIG | {"base_model_name_or_path": f"{key}{number}", key: number}
        folder = write_folder(tmp_path / f"evil{number}", arrays, config)
        files.append(tmp_path / f"evil{number}.vblora")
        result = vbfmt("pack", folder, "-o", files[-1])
        assert (result.code, hostile(result.out + result.err)) == (0, False)
        arrays = arrays | {BANK: arrays[BANK] + 1}
        arrays[f"base_model.model.{turned}\u202e.bias"] = np.ones(3, np.float32)
    return files


@pytest.mark.parametrize(
    ("words", "code", "shows"),
    [
        (("diff", "{0}", "{1}"), 1, "evil\\x1b[2J\\nkey\\u202e"),
        (("diff", "{0}", "{1}", "--json"), 1, "evil\\u001b[2J\\nkey\\u202e"),
        (("inspect", "{0}", "--modules"), 0, "evil\\x1b[2J\\nkey\\u202e0"),
        (("inspect", "{0}", "--json"), 0, "evil\\u001b[2J\\nkey\\u202e0"),
        (("verify", "{0}", "--against", "{source}"), 1, "evil\\x1b[2J\\nkey\\u202e"),
        (("verify", "{0}", "--against", "{source}", "--json"), 1, "evil\\u001b[2J\\nkey\\u202e"),
        (("expand", "{0}", "{1}", "-o", "{out}", "--drop-extras"), 0, "evil\\x1b[2J\\nkey\\u202e0"),
        (("expand", "{0}", "-o", "{out}", "--rank", "1"), 0, "layers.0.a\\u202eb\\u2066"),
        (("unpack", "{0}", "-o", "{out}"), 0, ""),
        (("expand", "{0}", "-o", "{out}", "--to", "gguf"), 1, "evil\\x1b[2J\\nkey\\u202e0"),
        (("merge", "{0}", "--base", "{source}", "-o", "{out}"), 1, ""),
        (("unpack", "{0}", "-o", "{turned}"), 0, "out\\u202e"),
        (("pack", "{source}", "-o", "{turned}"), 0, "out\\u202e"),
    ],
)
def test_no_command_lets_a_file_control_the_terminal(vbfmt, tmp_path, evil, words, code, shows):
    names = {
        "source": tmp_path / "evil1",
        "out": tmp_path / "out",
        "turned": tmp_path / "out\u202e",
    }
    result = vbfmt(*(word.format(*evil, **names) for word in words))
    assert result.code == code
    assert shows in result.out + result.err
    assert not hostile(result.out + result.err)
    if "--json" in words:
        assert json.loads(result.out)


def test_direction_marks_are_escaped_in_json(vbfmt, tmp_path, evil):
    for command in ("unpack", "expand"):
        assert vbfmt(command, evil[0], "-o", tmp_path / command).code == 0
        text = (tmp_path / command / "adapter_config.json").read_text()
        assert not hostile(text)
        assert json.loads(text)["base_model_name_or_path"] == "evil\x1b[2J\nkey\u202e0"
    assert vbfmt("pack", tmp_path / "unpack", "-o", tmp_path / "again.vblora").code == 0
    assert (tmp_path / "again.vblora").read_bytes() == evil[0].read_bytes()


def test_a_page_on_a_terminal_shows_no_direction_marks(vbfmt, evil, monkeypatch):
    monkeypatch.setattr("vbfmt.cli.inspect._on_terminal", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    result = vbfmt("inspect", evil[0], "--modules")
    assert (result.code, hostile(result.out)) == (0, False)


def test_no_count_of_ignored_tensors_for_a_state_dict_without_a_base(vbfmt, tmp_path):
    """Earlier, the count was −1 if the file named no base model."""
    from tests.converters.test_algorithm1 import saved, state

    words = ("pack", saved(tmp_path, state()), "-o", tmp_path / "x.vblora", "--topk", 2)
    result = vbfmt(*words, "--layout", "nlu")
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    "words",
    [
        ("estimate", "a", "{evil}"),
        ("{evil}",),
        ("verify", "--{evil}"),
        ("store", "{evil}"),
        ("plot", "x.vblora", "-o", "x.html", "--figure", "{evil}"),
        ("expand", "x.vblora", "-o", "x", "--rank", "{evil}"),
        ("verify", "{evil}"),
        ("jobs", "verify", "{evil}"),
        ("store", "add", "{folder}/s", "{evil}"),
    ],
)
@pytest.mark.parametrize("evil", ["\x1b[2J", "\x9b2J", "\u202ex", "\x07", "\x85y", "\u2028z"])
def test_file_names_cannot_control_the_terminal(vbfmt, tmp_path, words, evil):
    """As in ``vbfmt verify *`` in a folder with hostile file names."""
    result = vbfmt(*(word.format(evil=evil, folder=tmp_path) for word in words))
    assert result.code in (1, 2)
    assert not hostile(result.out + result.err)
    shown = result.out + result.err
    assert repr(evil)[1:-1] in shown or "\x1b" in evil  # click removes escape sequences


@pytest.mark.parametrize("evil", ["\x1b[2J", "\x9b2J", "\u202ex", "a\nb", "[bold]m", "$(id)", "-x"])
def test_lines_about_written_files_escape_their_names(vbfmt, packed, tmp_path, evil):
    for command, name in (
        ("unpack", evil),
        ("expand", f"{evil}2"),
        ("bank split", f"{evil}.vblora"),
    ):
        result = vbfmt(*command.split(), packed, "-o", f"{tmp_path}/{name}")
        assert result.code == 0
        assert not hostile(result.out + result.err)
        assert repr(evil)[1:-1] in result.out
        assert len(result.out.splitlines()) <= 8


def test_a_file_name_like_an_option_is_not_an_option_in_the_upload_command():
    from vbfmt.cli.written import upload_line

    assert upload_line("--token") == f"to upload: hf upload OWNER/NAME .{os.sep}--token"
