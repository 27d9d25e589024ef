"""The help texts: examples are valid, and mistyped commands get a suggestion."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterator
from importlib import import_module

import click
import pytest

import vbfmt as vbfmt_package
from vbfmt.cli import COMMANDS


def leaves(command: click.Command, *words: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of a command, or of each command of a group."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from leaves(inner, *words, name)
    else:
        yield words


def command(*words: str) -> click.Command:
    found: click.Command = import_module(f"vbfmt.cli.{words[0]}").command
    for word in words[1:]:
        found = found.commands[word]
    return found


EVERY = [words for name in COMMANDS for words in leaves(command(name), name)]
each_command = pytest.mark.parametrize("name", EVERY, ids=" ".join)


@each_command
def test_every_help_text_has_valid_examples(vbfmt, name):
    shown = vbfmt(*name, "--help").out
    assert "\nExamples:\n" in shown
    for example in command(*name).examples:
        assert f"\n  {example}\n" in shown
        words = shlex.split(example.partition("|")[0].partition("&&")[0])
        assert words[: 1 + len(name)] == ["vbfmt", *name]
        command(*name).make_context(name[-1], words[1 + len(name) :]).close()


@each_command
def test_every_command_accepts_json_quiet_and_verbose(name):
    options = {word for each in command(*name).params for word in each.opts}
    assert {"--json", "--quiet", "-q", "--verbose", "-v"} <= options


GROUPS = [(), *((name,) for name in COMMANDS if isinstance(command(name), click.Group))]


@pytest.mark.parametrize("name", [*EVERY, *GROUPS], ids=" ".join)
def test_help_fits_eighty_columns(vbfmt, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, vbfmt(*name, "--help").out.splitlines())) <= 80


@pytest.mark.parametrize("name", GROUPS, ids=" ".join)
def test_the_list_of_commands_truncates_no_summary(vbfmt, name):
    shown = " ".join(vbfmt(*name, "--help").out.split())
    for inner in command(*name).commands if name else COMMANDS:
        first = command(*name, inner).help.partition("\n\n")[0]
        assert " ".join(first.split()).partition(". ")[0] in shown


@pytest.mark.parametrize("name", GROUPS[1:], ids=" ".join)
def test_examples_of_a_group_are_examples_of_its_commands(vbfmt, name):
    examples = command(*name).examples
    assert all(f"\n  {example}\n" in vbfmt(*name, "--help").out for example in examples)
    inner = {one for words in EVERY if words[:1] == name for one in command(*words).examples}
    assert len(examples) >= 2
    assert set(examples) <= inner


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("veryfy", "verify"),
        ("Pack", "pack"),
        ("unpck", "unpack"),
        ("info", "inspect"),
        ("convert", "expand"),
        ("compare", "diff"),
    ],
)
def test_a_mistyped_command_gets_a_suggestion(vbfmt, typed, meant):
    result = vbfmt(typed, "x")
    assert result.code == 2
    assert f"No such command {typed!r}. Did you mean {meant!r}?" in result.err


def test_an_unknown_command_gets_the_list_of_commands(vbfmt):
    assert f"Commands: {', '.join(COMMANDS)}." in vbfmt("zzzzzz").err


def test_a_path_before_the_command_is_recognized(vbfmt, packed, checkpoint):
    assert f"Give the command first: vbfmt verify {packed}" in vbfmt(packed, "verify").err
    assert f"as in: vbfmt verify {packed}" in vbfmt(packed).err
    assert f"as in: vbfmt pack {checkpoint}" in vbfmt(checkpoint).err


def test_swapped_arguments_are_recognized(vbfmt, tmp_path, packed, checkpoint):
    swapped = vbfmt("pack", packed, "-o", checkpoint)
    assert (swapped.code, swapped.out) == (2, "")
    assert f"did you mean: vbfmt pack {checkpoint} -o {packed}" in swapped.err
    proof = vbfmt("verify", checkpoint, "--against", packed)
    assert proof.code == 2
    assert f"vbfmt verify {packed} --against {checkpoint}" in proof.err
    model = tmp_path / "model"
    model.mkdir()
    merge = vbfmt("merge", model, "--base", packed, "-o", tmp_path / "out")
    assert merge.code == 2
    assert f"did you mean: vbfmt merge {packed} --base {model}" in merge.err


def test_a_mistyped_option_gets_a_suggestion(vbfmt):
    message = vbfmt("pack", "x", "--outptu", "y").err
    assert "Did you mean" in message or "Possible options" in message  # depends on click
    assert "--output" in message


def test_estimate_accepts_the_names_of_the_config(vbfmt):
    long = vbfmt("estimate", "--model", "llama-2-7b", "--num-vectors", "64", "--vector-length",
                 "128", "--topk", "3", "--rank", "8", "--json")  # fmt: skip
    short = vbfmt("estimate", "--model", "llama-2-7b", "--h", "64", "--b", "128", "--k", "3",
                  "--r", "8", "--json")  # fmt: skip
    assert long.code == 0
    assert long.out == short.out


def test_too_many_inputs_get_the_advice_to_use_jobs(vbfmt):
    answer = vbfmt("pack", "a", "b", "-o", "x.vblora")
    assert (answer.code, answer.out) == (2, "")
    assert "For many inputs: vbfmt jobs pack --help" in answer.err
    assert "vbfmt jobs" not in vbfmt("unpack", "a", "b", "-o", "x").err


@pytest.mark.parametrize("name", ["pack", "unpack", "expand", "merge"])
def test_the_function_of_a_command_takes_its_options(name):
    """Only the command has options for its output, and only the function has a progress
    callback."""
    function = set(inspect.signature(getattr(vbfmt_package, name)).parameters)
    printing = {"quiet", "verbose", "as_json"}
    inputs = {"source", "file", "files", "output"}
    options = {each.name for each in command(name).params} - printing
    assert options - inputs == function - {"src", "dst", "progress"}
