"""``vbfmt bank``, ``pack --bank external``, and ``--banks`` of the commands that read."""

from __future__ import annotations

import json

import pytest

from vbfmt.cli.show import size


@pytest.fixture
def thin(vbfmt, packed, tmp_path):
    """A packed file without its bank, which is in another folder."""
    path = tmp_path / "thin.vblora"
    assert vbfmt("bank", "split", packed, "-o", path, "--banks", tmp_path / "shelf").code == 0
    return path


def test_split_and_join_print_the_same_digest(vbfmt, packed, thin, tmp_path):
    (bank,) = (tmp_path / "shelf").iterdir()
    assert bank.stat().st_size + thin.stat().st_size < packed.stat().st_size + 64
    done = vbfmt("bank", "join", thin, "-o", tmp_path / "j.vblora", "--banks", tmp_path / "shelf")
    assert done.code == 0
    assert (tmp_path / "j.vblora").read_bytes() == packed.read_bytes()
    digest = vbfmt("verify", packed, "--json").out
    assert done.out.splitlines()[1] == json.loads(digest)[0]["digest"]


def test_pack_external_writes_what_split_writes(vbfmt, checkpoint, thin, tmp_path):
    out = tmp_path / "new.vblora"
    done = vbfmt("pack", checkpoint, "-o", out, "--bank", "external", "--banks", tmp_path / "other")
    assert done.code == 0
    assert out.read_bytes() == thin.read_bytes()
    (bank,) = (tmp_path / "other").iterdir()
    assert f"external bank: {bank}" in done.out
    refused = vbfmt("pack", checkpoint, "-o", tmp_path / "y.vblora", "--banks", tmp_path)
    assert refused.code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "THIN"),
        ("inspect", "THIN"),
        ("diff", "THIN", "PACKED"),
        ("unpack", "THIN", "-o", "OUT"),
        ("expand", "THIN", "-o", "OUT"),
    ],
    ids=lambda words: words[0],
)
def test_every_reading_command_searches_the_folder_given_by_banks(
    vbfmt, packed, thin, tmp_path, words
):
    paths = {"THIN": thin, "PACKED": packed, "OUT": tmp_path / "out"}
    words = [paths.get(word, word) for word in words]
    refused = vbfmt(*words)
    assert refused.code == (2 if words[0] == "diff" else 1)
    assert "vector bank not found" in refused.err + refused.out
    assert vbfmt(*words, "--banks", tmp_path / "shelf").code == 0


def test_verify_names_the_wrong_bank(vbfmt, thin, tmp_path):
    (bank,) = (tmp_path / "shelf").iterdir()
    bank.write_bytes(b"x")
    done = vbfmt("verify", thin, "--banks", tmp_path / "shelf")
    assert done.code == 1
    assert f"not the vector bank that the adapter needs in {bank}" in done.out


def test_list(vbfmt, thin, tmp_path):
    (bank,) = (tmp_path / "shelf").iterdir()
    done = vbfmt("bank", "list", tmp_path / "shelf", thin, "--json")
    assert done.code == 0
    (one,) = json.loads(done.out)
    assert one["file"] == str(bank)
    assert one["adapters"] == [str(thin)]
    missing = vbfmt("bank", "list", thin)
    assert missing.code == 1
    assert "1 adapter" in missing.out


def test_inspect_gives_the_size_of_an_external_bank_separately(vbfmt, packed, thin, tmp_path):
    for file, form, words in ((packed, "embedded", ()), (thin, "external", ("--banks", "shelf"))):
        words = [tmp_path / word if word == "shelf" else word for word in words]
        found = json.loads(vbfmt("inspect", file, "--json", *words).out)
        assert (found["bank"], found["bytes"]["file"]) == (form, file.stat().st_size)
    (bank,) = (tmp_path / "shelf").iterdir()
    lines = vbfmt("inspect", thin, "--banks", tmp_path / "shelf").out.splitlines()
    assert lines[0].startswith(
        f"{thin}: {size(thin.stat().st_size)} and an external bank of {size(bank.stat().st_size)}, "
    )
    assert any(line.startswith("  external bank ") for line in lines)
    (rest,) = (line.split()[2] for line in lines if line.startswith("  header, padding "))
    assert 0 < int(rest) < thin.stat().st_size


def test_a_missing_bank_is_listed_with_the_option_that_helps(vbfmt, thin, tmp_path):
    listed = vbfmt("bank", "list", thin)
    assert listed.code == 1
    assert "give its folder: --banks FOLDER" in listed.out
    assert "`" not in listed.out
    assert "`" not in vbfmt("bank", "list", thin, "--json").out


@pytest.mark.parametrize("command", ["verify", "inspect", "unpack"])
def test_a_bank_is_not_mistaken_for_a_checkpoint(vbfmt, thin, tmp_path, command):
    (bank,) = (tmp_path / "shelf").iterdir()
    out = () if command != "unpack" else ("-o", tmp_path / "out")
    answer = vbfmt(command, bank, *out)
    assert answer.code == 1
    assert "named like a vector bank; give the packed file" in answer.out + answer.err
