"""Output for scripts: JSON, exit statuses, --quiet and --verbose; comparison with checkpoints."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import contextmanager

import numpy as np
import pytest

from tests.cli.conftest import needs_matplotlib
from tests.converters.merge.folders import adapter_of, save_base, weights_of
from tests.converters.test_peft import CONFIG, logits_form, write_folder
from tests.tensor_files import write_tensors
from vbfmt import load, save
from vbfmt.cli import progress, show, written
from vbfmt.cli.written import upload_line

ERROR = {"message", "file", "kind", "part", "what", "found", "expected", "advice"}


def test_json_about_an_adapter_has_its_digest(vbfmt, tmp_path, checkpoint, packed):
    pytest.importorskip("matplotlib")
    digest = vbfmt("verify", packed).out.split()[-1]
    for words, key in (
        (("pack", checkpoint, "-o", tmp_path / "y.vblora"), "digest"),
        (("unpack", packed, "-o", tmp_path / "peft"), "digest"),
        (("inspect", packed), "digest"),
        (("plot", packed, "--figure", "usage", "-o", tmp_path / "x.svg"), "digest"),
        (("expand", packed, "-o", tmp_path / "lora"), "digests"),
        (("diff", packed, packed), "digests"),
    ):
        result = vbfmt(*words, "--json")
        assert result.code == 0, words
        assert json.loads(result.out)[key] in (digest, [digest], [digest] * 2), words
    assert json.loads(vbfmt("verify", packed, "--json").out)[0]["digest"] == digest


def test_a_merge_has_the_digests_of_its_adapters(vbfmt, tmp_path):
    digest = save(adapter_of(), tmp_path / "x.vblora")
    base = save_base(tmp_path / "base", weights_of())
    result = vbfmt("merge", tmp_path / "x.vblora", "--base", base, "-o", tmp_path / "m", "--json")
    assert json.loads(result.out)["digests"] == [digest]


def test_json_has_the_sum_that_sha256sum_prints(vbfmt, packed):
    expected = hashlib.sha256(packed.read_bytes()).hexdigest()
    assert json.loads(vbfmt("inspect", packed, "--json").out)["sha256"] == expected
    assert json.loads(vbfmt("verify", packed, "--json").out)[0]["sha256"] == expected
    assert f"sha256sum       {expected}" in vbfmt("inspect", packed).out
    assert expected in vbfmt("verify", packed, "-v").out
    assert "sha256sum" in vbfmt("verify", "--help").out


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (("pack", "no-folder", "-o", "x.vblora"), 1, "source"),
        (("unpack", "no-file", "-o", "x"), 1, "no-file"),
        (("expand", "no-file", "-o", "x"), 1, "no-file"),
        (("merge", "no-file", "--base", "b", "-o", "x"), 1, "no-file"),
        (("inspect", "no-file"), 1, "no-file"),
        pytest.param(
            ("plot", "no-file", "-o", "x.svg"),
            1,
            "no-file",
            marks=needs_matplotlib,
        ),
        (("diff", "no-file", "no-file"), 2, "no-file"),
        (("estimate", "--base", "no-folder"), 1, "source"),
        (("estimate", "--model", "unknown"), 2, "usage"),
        (("inspect",), 2, "usage"),
        (("nothing",), 2, "usage"),
        (("expand", "x", "--to", "mlx", "-o", "x.gguf"), 2, "config"),
    ],
)
def test_errors_are_printed_as_json_on_standard_output(
    vbfmt, tmp_path, monkeypatch, words, code, kind
):
    monkeypatch.chdir(tmp_path)
    result = vbfmt(*words, "--json")
    assert (result.code, result.err) == (code, "")
    error = json.loads(result.out)["error"]
    assert set(error) == ERROR
    assert error["kind"].replace("missing", "no-file") in (kind, "no-file")
    plain = vbfmt(*words)
    assert (plain.code, plain.out) == (code, "")
    assert error["message"] in " ".join(plain.err.split())


def test_diff_has_the_exit_statuses_of_diff_and_cmp(vbfmt, tmp_path, packed, checkpoint):
    other = write_folder(tmp_path / "other", logits_form(seed=1))
    assert vbfmt("diff", packed, packed).code == 0
    assert vbfmt("diff", packed, checkpoint).code == 0
    assert vbfmt("diff", packed, other).code == 1
    assert vbfmt("diff", packed, tmp_path / "none").code == 2
    assert vbfmt("diff", packed).code == 2


def test_diff_is_readable_if_shapes_differ(vbfmt, tmp_path):
    save(adapter_of(), tmp_path / "a.vblora")
    wide = adapter_of(shapes=dict.fromkeys(("model.layers.0.q",), (16, 8)))
    save(wide, tmp_path / "b.vblora")
    result = vbfmt("diff", tmp_path / "a.vblora", tmp_path / "b.vblora")
    assert result.code == 1
    assert "  model.layers.0.q: 24 → 16, rank 2 and 8 → 16, rank 2\n" in result.out


@pytest.mark.parametrize("words", [("verify",), ("inspect",), ("diff", "{packed}")])
def test_quiet_prints_nothing_on_success(vbfmt, packed, words):
    words = [word.format(packed=packed) for word in words]
    result = vbfmt(*words, packed, "-q")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_quiet_prints_what_failed_and_no_notes(vbfmt, tmp_path, packed):
    damaged = tmp_path / "damaged.vblora"
    data = bytearray(packed.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    result = vbfmt("verify", damaged, packed, "--quiet")
    assert result.code == 1
    assert [line.split(":")[0] for line in result.out.splitlines()] == [str(damaged)]
    folder = write_folder(tmp_path / "tied", logits_form() | {KEY: np.zeros((2, 2, 12), "f4")})
    done = vbfmt("pack", folder, "-o", tmp_path / "y.vblora", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert vbfmt("verify", packed, "-q", "-v").code == 2


KEY = "base_model.model.layers.0.q.vblora_logits_A"


def test_every_check_is_reported_and_strict_makes_problems_errors(vbfmt, tmp_path, packed):
    from tests.converters.test_lora import wide_indices

    save(wide_indices(), tmp_path / "w.vblora")
    words = ("expand", tmp_path / "w.vblora", "-o", tmp_path / "a")
    both = vbfmt(*words, "--check", "sglang", "--check", "TGI", "--json", "--drop-extras")
    assert both.code == 0
    assert json.loads(both.out)["check"] == ["sglang", "tgi"]
    second = vbfmt(*words, "--check", "tgi", "--check", "vllm", "--force")
    assert (second.code, "vllm would not load it" in second.err) == (1, True)
    strict = vbfmt(*words, "--check", "tgi", "--strict", "--force")
    assert (strict.code, "error: tgi drops " in strict.err) == (1, True)
    gone = tmp_path / "strict"
    assert vbfmt(*words[:3], gone, "--check", "tgi", "--strict").code == 1
    assert not gone.exists()
    clean = vbfmt("expand", packed, "-o", gone, "--check", "vllm", "--check", "tgi", "--strict")
    assert clean.code == 0
    assert clean.out.count("no problems found") == 2
    assert vbfmt("expand", packed, "-o", gone, "--strict").code == 2


def test_strict_names_what_every_runtime_needs_or_drops(vbfmt, tmp_path, data_folder):
    words = ("expand", data_folder / "minilm-vblora", "-o", tmp_path / "x", "--strict")
    refused = vbfmt(*words, "--check", "vllm", "--check", "tgi")
    assert (refused.code, refused.out) == (1, "")
    assert "vllm needs to know heads: classifier (" in refused.err
    assert "; tgi drops classifier.bias, classifier.weight (" in refused.err
    assert not (tmp_path / "x").exists()


def test_comparison_with_the_topk_form_allows_its_rounding(vbfmt, tmp_path, packed):
    assert vbfmt("unpack", packed, "-o", tmp_path / "topk").code == 0
    from vbfmt.converters._files import safetensors

    file = tmp_path / "topk" / "adapter_model.safetensors"
    tensors = dict(safetensors.read(file).tensors)
    name = next(key for key in tensors if key.endswith("A_topk_weights"))
    from vbfmt.tensors import Tensor

    def nudged(steps):
        values = tensors[name].numpy().copy()
        values[0, 0, 0] = values[0, 0, 0] + np.float32(steps * 2.0**-24)
        write_tensors(file, {**tensors, name: Tensor.of(values)})

    file.unlink()
    nudged(1)
    result = vbfmt("verify", packed, "--against", tmp_path / "topk")
    assert result.code == 0
    assert ", to " in result.out
    answer = json.loads(vbfmt("verify", packed, "--against", tmp_path / "topk", "--json").out)[0]
    assert 0 < answer["largest_difference"] < 1e-6
    file.unlink()
    nudged(40)
    result = vbfmt("verify", packed, "--against", tmp_path / "topk")
    assert (result.code, "FAILED" in result.out) == (1, True)


def test_comparison_with_logits_requires_equality(vbfmt, packed, checkpoint):
    answer = json.loads(vbfmt("verify", packed, "--against", checkpoint, "--json").out)[0]
    assert (answer["ok"], answer["largest_difference"]) == (True, 0.0)


def test_against_a_packed_file_points_to_diff(vbfmt, packed):
    result = vbfmt("verify", packed, "--against", packed)
    assert (result.code, f"vbfmt diff {packed} {packed}" in result.err) == (2, True)


@pytest.mark.parametrize("command", ["expand", "unpack"])
def test_checkpoints_need_not_be_packed_first(vbfmt, tmp_path, packed, checkpoint, command):
    direct, by_file = tmp_path / "direct", tmp_path / "by-file"
    assert vbfmt(command, checkpoint, "-o", direct).code == 0
    assert vbfmt(command, packed, "-o", by_file).code == 0
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (direct / name).read_bytes() == (by_file / name).read_bytes()


def test_the_name_of_the_base_model_can_be_set(vbfmt, tmp_path, checkpoint):
    file = tmp_path / "x.vblora"
    assert vbfmt("pack", checkpoint, "-o", file, "--base-model", "me/other").code == 0
    assert load(file).base_model == "me/other"
    assert vbfmt("verify", file, "--against", checkpoint).code == 1
    proof = ("verify", file, "--against", checkpoint, "--base-model", "me/other")
    assert vbfmt(*proof).code == 0


@pytest.mark.parametrize("path", ["/home/me/models/llama", "../llama", "C:\\models\\llama", "~/l"])
def test_a_path_on_the_training_machine_is_not_kept_unless_requested(vbfmt, tmp_path, path):
    config = CONFIG | {"base_model_name_or_path": path}
    folder = write_folder(tmp_path / "local", logits_form(), config)
    file = tmp_path / "x.vblora"
    done = vbfmt("pack", folder, "-o", file)
    assert done.code == 0
    assert "is a path on the machine that trained the adapter, so it is not recorded" in done.err
    assert "give --base-model NAME" in done.err
    assert load(file).base_model is None
    assert path.encode() not in file.read_bytes()
    assert vbfmt("verify", file, "--against", folder).code == 0
    assert vbfmt("pack", folder, "-o", file, "--base-model", path, "--force").code == 0
    assert load(file).base_model == path


def test_a_rank_that_loses_much_gives_a_note(vbfmt, tmp_path, packed):
    result = vbfmt("expand", packed, "-o", tmp_path / "x", "--rank", "1")
    assert result.code == 0
    lost = json.loads(vbfmt("expand", packed, "-o", tmp_path / "y", "--rank", "1", "--json").out)[
        "lost"
    ]
    much = sum(lost.values()) / len(lost) > 0.1
    assert ("note: rank 1 loses much" in result.err) == much
    assert much  # true for this adapter


@pytest.mark.parametrize("command", ["pack", "unpack", "expand"])
def test_the_upload_command_is_printed_after_writing(vbfmt, tmp_path, checkpoint, command):
    output = tmp_path / ("x.vblora" if command == "pack" else "folder")
    done = vbfmt(command, checkpoint, "-o", output)
    assert done.out.splitlines()[-1] == f"to upload: hf upload OWNER/NAME {output}"
    assert vbfmt(command, checkpoint, "-o", output, "--force", "-q").out == ""


def test_the_upload_command_is_printed_for_a_merged_model(vbfmt, tmp_path):
    base = save_base(tmp_path / "base", weights_of())
    save(adapter_of(), tmp_path / "x.vblora")
    words = ("merge", tmp_path / "x.vblora", "--base", base, "-o", tmp_path / "m")
    assert "to upload:" not in vbfmt(*words, "--dry-run").out
    upload = f"to upload: hf upload OWNER/NAME {tmp_path / 'm'}"
    assert vbfmt(*words).out.splitlines()[-1] == upload


def test_the_upload_command_of_a_thin_file_includes_its_bank(vbfmt, tmp_path, checkpoint, packed):
    store = tmp_path / "store"
    vbfmt("store", "add", store, packed, "--name", "alice")
    for name, words in {
        "pack": ("pack", checkpoint, "--bank", "external"),
        "split": ("bank", "split", packed),
        "get": ("store", "get", store, "alice", "--bank", "external"),
    }.items():
        folder = tmp_path / name
        done = vbfmt(*words, "-o", folder / "x.vblora")
        (bank,) = folder.glob("*.bank")
        assert done.out.splitlines()[-2:] == [
            f"to upload: hf upload OWNER/NAME {folder}/x.vblora",
            f"to upload: hf upload OWNER/NAME {bank}",
        ]
    joined = vbfmt("bank", "join", tmp_path / "split" / "x.vblora", "-o", tmp_path / "y.vblora")
    assert joined.out.splitlines()[-1] == f"to upload: hf upload OWNER/NAME {tmp_path}/y.vblora"


def test_the_upload_command_is_quoted_for_the_systems_shell(monkeypatch):
    assert upload_line("my x.vblora") == "to upload: hf upload OWNER/NAME 'my x.vblora'"
    monkeypatch.setattr(written.sys, "platform", "win32")
    assert upload_line("my x.vblora") == 'to upload: hf upload OWNER/NAME "my x.vblora"'


def test_the_upload_command_includes_the_card(vbfmt, tmp_path, checkpoint, packed):
    pytest.importorskip("huggingface_hub")
    folder = tmp_path / "my repository"
    done = vbfmt("pack", checkpoint, "-o", folder / "x.vblora", "--card")
    assert done.out.splitlines()[-2:] == [
        f"to upload: hf upload OWNER/NAME '{folder}/x.vblora'",
        f"to upload: hf upload OWNER/NAME '{folder}/README.md'",
    ]
    for command in ("unpack", "expand"):
        done = vbfmt(command, packed, "-o", tmp_path / command, "--card")
        assert done.out.splitlines()[-1] == f"to upload: hf upload OWNER/NAME {tmp_path / command}"


def test_json_of_any_length_is_printed_completely(capsys):
    """The text is printed in pieces."""
    value = {"rows": list(range(3 * show._PIECES))}
    show.as_json(value)
    assert json.loads(capsys.readouterr().out) == value


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (2.5e6, "2.5 MB"),
        (1e9, "1.0 GB"),
        (4e13, "40.0 TB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_sizes_are_in_powers_of_1000(count, text):
    assert show.size(count) == text


def test_progress_that_is_not_in_bytes_is_counted():
    words = progress._Bar("modules")._words(1200)(30)
    assert re.fullmatch(r"30 of 1,200 modules, [\d,]+/s", words)


def test_a_revision_needs_a_base(vbfmt):
    result = vbfmt("estimate", "--model", "llama-2-7b", "--revision", "main")
    assert (result.code, "--revision needs --base" in result.err) == (2, True)


def test_many_modules_that_differ_are_counted(vbfmt, tmp_path):
    shapes = {f"layers.{number}.q": (8, 8) for number in range(25)}
    for seed in (1, 2):
        save(adapter_of(shapes, seed=seed), tmp_path / f"{seed}.vblora")
    result = vbfmt("diff", tmp_path / "1.vblora", tmp_path / "2.vblora")
    assert result.code == 1
    assert result.out.count("largest difference") == 2 + 20
    assert "  … and 5 more (--json lists all)" in result.out


def test_a_weights_file_is_compared_with_a_packed_file(vbfmt, packed, checkpoint):
    result = vbfmt("diff", packed, checkpoint / "adapter_model.safetensors")
    assert (result.code, "hold the same adapter" in result.out) == (0, True), result.err


@pytest.mark.parametrize(
    "words",
    [
        ("expand", "A", "B", "-o", "{out}"),
        ("expand", "A", "-o", "{out}", "--rank", 1),
        ("merge", "A", "B", "--base", "M", "-o", "{out}"),
        pytest.param(("plot", "A", "-o", "{out}.html"), marks=needs_matplotlib),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_long_work_shows_its_progress(vbfmt, tmp_path, monkeypatch, words):
    paths = {letter: tmp_path / letter for letter in "ABM"}
    for seed, letter in enumerate("AB"):
        save(adapter_of(seed=seed), paths[letter])
    save_base(paths["M"], weights_of())
    steps = []

    @contextmanager
    def shown(unit):
        yield lambda count, total: steps.append((count, total))

    monkeypatch.setattr(progress, "shown", shown)
    given = (paths.get(word, str(word).format(out=tmp_path / "out")) for word in words)
    assert vbfmt(*given).code == 0
    (total,) = {total for _, total in steps}
    assert sum(count for count, _ in steps) == total
