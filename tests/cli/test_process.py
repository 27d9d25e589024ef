"""The command as a process: pipes, encodings, signals."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from tests.cli.conftest import Result
from tests.conftest import ROOT
from tests.converters.merge.folders import adapter_of, save_base, weights_of
from vbfmt import cli, save
from vbfmt.cli import process
from vbfmt.cli.failure import Failure

COMMAND = [sys.executable, "-m", "vbfmt"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def run(*words, given: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        input=given,
        env={**os.environ, **environment},
        capture_output=True,
    )


def test_packed_files_go_through_pipes(tmp_path, checkpoint, packed):
    data = packed.read_bytes()
    made = run("pack", checkpoint, "-o", "-")
    assert (made.returncode, made.stdout) == (0, data)
    assert b"read as PEFT VB-LoRA" in made.stderr
    for words in (
        ("verify", "-"),
        ("inspect", "-"),
        ("diff", "-", packed),
        ("unpack", "-", "-o", tmp_path / "peft"),
        ("expand", "-", "-o", tmp_path / "lora"),
    ):
        done = run(*words, given=data)
        assert (done.returncode, done.stderr) == (0, b""), words
    assert run("verify", "-", given=data).stdout.startswith(b"-: ok\n  sha256:")


def test_errors_name_standard_input(tmp_path, packed):
    done = run("expand", "-", "-o", tmp_path / "lora", given=b"not a packed file")
    assert done.returncode == 1
    assert b" in standard input: " in done.stderr
    assert b"tmp" not in done.stderr.replace(os.fsencode(tmp_path), b"")
    twice = run("diff", "-", "-", given=packed.read_bytes())
    assert (twice.returncode, b"given only once" in twice.stderr) == (2, True)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp437", "ascii", "koi8-r", "utf-8"])
def test_the_whole_output_is_printed_in_any_encoding(tmp_path, encoding):
    import dataclasses

    adapter = dataclasses.replace(adapter_of(), base_model="модель/\u732b-é")
    file = tmp_path / "x.vblora"
    save(adapter, file)
    for words in (
        ("inspect", file),
        ("inspect", tmp_path / "нет.vblora"),
        ("unpack", file, "-o", tmp_path / f"{encoding}-é"),
        ("estimate", "--model", "llama-2-7b"),
        ("--help",),
        ("expand", "--help"),
        ("nó", "such"),
    ):
        done = run(*words, PYTHONIOENCODING=encoding)
        assert b"Traceback" not in done.stderr, words
        assert done.returncode == (1 if "нет" in str(words) else 2 if words[0] == "nó" else 0)
        assert done.stdout or done.stderr
        done.stdout.decode(encoding)
        done.stderr.decode(encoding)
    answer = run("inspect", file, "--json", PYTHONIOENCODING=encoding).stdout.decode(encoding)
    assert json.loads(answer)["base_model"] == "модель/\u732b-é"


def test_special_characters_are_replaced_by_ascii(tmp_path):
    save(adapter_of(), tmp_path / "x.vblora")
    words = run("inspect", tmp_path / "x.vblora", PYTHONIOENCODING="ascii").stdout.decode("ascii")
    assert "x larger than" in words or "x smaller than" in words
    assert " -> " in words
    assert "?" not in words


def test_the_locale_c(tmp_path):
    save(adapter_of(), tmp_path / "x.vblora")
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("inspect", tmp_path / "x.vblora", **environment)
    assert (done.returncode, done.stderr) == (0, b"")


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_not_an_error(tmp_path, unbuffered):
    save(adapter_of(), tmp_path / "x.vblora")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "inspect", str(tmp_path / "x.vblora")],
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


SLOW = """
import sys, time
from vbfmt._files import storage

def slow(*arguments, **options):
    print("writing", flush=True)
    time.sleep(60)

storage.sync_folder = slow
sys.argv = ["vbfmt", *sys.argv[1:]]
from vbfmt.cli import main
main()
"""


@posix
@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)],
)
def test_a_signal_leaves_nothing(tmp_path, number, status):
    save(adapter_of(), tmp_path / "x.vblora")
    model = save_base(tmp_path / "base", weights_of())
    words = ["merge", tmp_path / "x.vblora", "--base", model, "-o", tmp_path / "new" / "merged"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # nohup ignores SIGHUP
    )
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert b"Traceback" not in errors
    assert sorted(os.listdir(tmp_path)) == ["base", "x.vblora"]


@posix
def test_an_ignored_hangup_signal_stays_ignored():
    program = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from vbfmt.cli.process import clean_up_on_signals\n"
        "clean_up_on_signals(); print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    )
    assert subprocess.check_output([sys.executable, "-c", program]) == b"True\n"


@posix
def test_shell_completion_lists_the_commands():
    script = run(_VBFMT_COMPLETE="bash_source").stdout
    assert b"complete" in script
    found = run(_VBFMT_COMPLETE="bash_complete", COMP_WORDS="vbfmt ver", COMP_CWORD="1").stdout
    assert b"verify" in found
    options = run(_VBFMT_COMPLETE="bash_complete", COMP_WORDS="vbfmt pack --b", COMP_CWORD="2")
    assert b"--base-model" in options.stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_the_line_in_the_help_installs_shell_completion(vbfmt, tmp_path):
    (line,) = re.findall(r"Completion: +(.*)", vbfmt("--help").out)
    command = tmp_path / "vbfmt"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vbfmt "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    shown = subprocess.check_output(
        ["bash", "-c", f"{line}\ncomplete -p vbfmt"], env=environment, text=True
    )
    assert "-F _vbfmt_completion vbfmt" in shown


@pytest.mark.parametrize(
    ("error", "message", "fields"),
    [
        (MemoryError(), "not enough memory", {"kind": "memory", "file": None}),
        (
            PermissionError(13, "Permission denied", "x\ny"),
            "Permission denied in x\\ny",
            {"kind": "storage", "file": "x\ny", "what": "Permission denied"},
        ),
        (OSError(), "OSError", {"kind": "storage", "file": None, "what": None}),
    ],
)
def test_a_system_error_outside_a_command_is_one_line(vbfmt, monkeypatch, error, message, fields):
    monkeypatch.setattr(cli, "import_module", raiser(error))
    assert vbfmt("inspect", "x") == Result(1, "", f"error: {message}\n")
    found = json.loads(vbfmt("inspect", "x", "--json").out)["error"]
    assert found == {**dict.fromkeys(found), "message": message, **fields}


def test_a_bug_outside_a_command_is_not_hidden(vbfmt, monkeypatch):
    monkeypatch.setattr(cli, "import_module", raiser(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        vbfmt("inspect", "x")


def test_an_interrupt_has_the_exit_status_of_shells(vbfmt, monkeypatch):
    monkeypatch.setattr(cli, "import_module", raiser(KeyboardInterrupt()))
    result = vbfmt("inspect", "x")
    assert (result.code, result.err.strip()) == (130, "interrupted")


def raiser(error):
    def raising(*_):
        raise error

    return raising


def test_an_unknown_command_has_no_completion():
    context = cli.group.make_context("vbfmt", ["none"], resilient_parsing=True)
    assert cli.group.get_command(context, "none") is None


def test_standard_output_need_not_be_a_text_file(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    process.write_in_any_encoding()
    print("×")
    assert sys.stdout.getvalue() == "×\n"


def test_bytes_that_cannot_be_decoded_are_not_replaced():
    process.write_in_any_encoding()
    assert "a→×ß".encode("ascii", "vbfmt") == b"a->x?"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", "vbfmt")


def test_the_module_runs_the_command():
    assert importlib.import_module("vbfmt.__main__").main is cli.main


@pytest.mark.parametrize("option", ["--card", "--json"])
def test_nothing_else_is_printed_with_a_file_on_standard_output(vbfmt, checkpoint, option):
    result = vbfmt("pack", checkpoint, "-o", "-", option)
    assert result.code == 2
    assert f"{option} cannot be used with -o -" in " ".join((result.out + result.err).split())


def test_a_packed_file_is_not_written_to_a_terminal(vbfmt, checkpoint, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    result = vbfmt("pack", checkpoint, "-o", "-")
    assert (result.code, result.out) == (2, "")
    assert "would write bytes to the terminal" in result.err


def test_a_packed_file_is_not_read_from_a_terminal(vbfmt, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    result = vbfmt("verify", "-")
    assert result.code == 2
    assert "which is a terminal: pipe a file into it" in " ".join(result.err.split())


@posix
@pytest.mark.parametrize(
    "words", [("inspect",), ("verify",), ("inspect", "--json"), ("verify", "-q")]
)
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_runs_with_closed_streams(packed, words, closed):
    line = " ".join([*COMMAND, *words, str(packed), closed])
    done = subprocess.run(line, shell=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) == (">&-" not in closed.replace("2>&-", "") and "-q" not in words)


@posix
@pytest.mark.parametrize(
    ("words", "closed"),
    [
        (("verify", "-"), "<&-"),
        (("jobs", "verify", "-"), "<&-"),
        (("pack", "checkpoint", "-o", "-"), ">&-"),
    ],
)
def test_closed_streams_that_a_command_needs_are_refused(packed, words, closed):
    """Otherwise, a closed input would count as an empty list, and the output would be lost."""
    line = " ".join([*COMMAND, *words, closed])
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=packed.parent)
    assert done.returncode == 2
    assert "which is closed" in done.stderr


@posix
def test_a_removed_current_folder_is_reported(tmp_path, checkpoint):
    (tmp_path / "gone").mkdir()
    line = " ".join(["rmdir ../gone;", *COMMAND, "pack", str(checkpoint), "-o", "x.vblora"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, cwd=tmp_path / "gone", env=environment
    )
    assert (done.returncode, done.stderr) == (1, "error: the current folder no longer exists\n")


@posix
@pytest.mark.usefixtures("unmeasured")  # coverage opens files, too
@pytest.mark.parametrize("files", [16, 28, 40])
def test_jobs_start_no_more_workers_than_the_limit_of_open_files_allows(packed, files):
    for number in range(40):
        (packed.parent / f"{number}.vblora").write_bytes(packed.read_bytes())
    line = " ".join([f"ulimit -n {files};", *COMMAND, "jobs verify '[0-9]*.vblora' -j 24"])
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=packed.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "40 done\n", "")


def test_an_error_without_errno_is_reported():
    error = OSError("AF_UNIX path too long")
    assert Failure(error).format_message() == "AF_UNIX path too long"


def run_into(path, command, unbuffered):
    """Run a command whose standard output is a file, with or without Python's buffer."""
    with open(path, "wb") as out:
        return subprocess.run(
            command,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words", [("inspect",), ("verify",), ("inspect", "--json"), ("verify", "--json")]
)
def test_a_full_disk_at_standard_output_is_reported_in_one_line(packed, words, unbuffered):
    done = run_into("/dev/full", [*COMMAND, *words, str(packed)], unbuffered)
    message = "error: cannot write standard output: no space left on device\n"
    assert (done.returncode, done.stderr) == (1, message)


LIMITED = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
sys.argv = ["vbfmt", *sys.argv[1:]]
from vbfmt.cli import main
main()
"""


@posix
@pytest.mark.usefixtures("unmeasured")  # coverage writes files, too
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("pack", "-q", "-o", "-"), ("inspect", "--json")])
def test_output_that_is_written_in_part_is_an_error(
    tmp_path, checkpoint, packed, words, unbuffered
):
    """The system writes the first 100 bytes, as on a disk that becomes full."""
    given = checkpoint if words[0] == "pack" else packed
    command = [sys.executable, "-c", LIMITED, *words, str(given)]
    done = run_into(tmp_path / "out", command, unbuffered)
    message = "error: cannot write standard output: file too large\n"
    assert (done.returncode, done.stderr) == (1, message)
