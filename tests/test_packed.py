"""Packed files: the guarantees of the format."""

from __future__ import annotations

import dataclasses
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spec.golden.make import GOLDEN, worked_example
from tests import forge
from tests.strategies import adapters
from vbfmt import Adapter, Module, Rows, banks, digest, dumps, errors, load, loads, save, verify

CORPUS = Path(__file__).parents[1] / "spec" / "corpus"


@given(adapters())
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_decoding_gives_the_encoded_adapter_bit_for_bit(adapter):
    again = loads(dumps(adapter))
    assert again == adapter
    for name in ("bank", "indices", "weights"):
        assert getattr(again, name).tobytes() == getattr(adapter, name).tobytes()
    assert dict(again.tensors) == dict(adapter.tensors)


@given(adapters())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_encoding_gives_the_decoded_file_byte_for_byte(adapter):
    data = dumps(adapter)
    assert dumps(loads(data)) == data


@given(adapters(), st.randoms(use_true_random=False))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_bytes_do_not_depend_on_the_order_of_construction(adapter, random):
    modules = list(adapter.modules)
    random.shuffle(modules)
    rows = {m: Rows(*_rows_of(adapter, m)) for m in modules}
    shuffled = Adapter.from_rows(
        adapter.bank,
        rows,
        tensors=_shuffled(adapter.tensors, random),
        metadata=_shuffled(adapter.metadata, random),
        base_model=adapter.base_model,
        base_revision=adapter.base_revision,
        config=adapter.config,
    )
    assert dumps(shuffled) == dumps(adapter)


@given(adapters())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_different_adapters_have_different_digests(adapter):
    data = dumps(adapter)
    assert loads(data, digest=digest(adapter)) == adapter
    other = dataclasses.replace(adapter, metadata={"another": "one"})
    assert digest(other) != digest(adapter)
    with pytest.raises(errors.DigestError):
        loads(data, digest=digest(other))


@pytest.mark.parametrize("h", [255, 256, 257, 65535, 65536])
def test_indices_are_as_small_as_the_bank_allows(h):
    adapter = _adapter_of_bank(h)
    again = loads(dumps(adapter))
    assert again.indices.dtype == (np.uint8 if h <= 256 else np.dtype("<u2"))
    assert again == adapter
    assert again.indices.max() == h - 1


def test_a_bank_past_65536_is_refused():
    with pytest.raises(errors.ContentError, match="found h = 65537, expected 1 to 65536"):
        _adapter_of_bank(65537)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_are_written_byte_for_byte(name, golden_folder):
    golden = (golden_folder / name).read_bytes()
    assert dumps(GOLDEN[name]()) == golden
    assert loads(golden) == GOLDEN[name]()


def test_every_flipped_bit_is_found_and_named():
    data = bytearray(dumps(worked_example()))
    for position in range(len(data)):
        for bit in range(8):
            data[position] ^= 1 << bit
            error = _refusal(bytes(data))
            assert error.part, (position, bit)
            data[position] ^= 1 << bit
    assert loads(bytes(data)) == worked_example()


def test_every_truncation_is_found_and_named():
    data = dumps(worked_example())
    for length in range(len(data)):
        error = _refusal(data[:length])
        assert isinstance(error, errors.LengthError), length
        assert error.found == f"{length} bytes"


@pytest.mark.parametrize("more", [b"\0", b"x", b"\0" * 64, b"x" * 1000])
def test_every_appended_byte_is_found(more):
    error = _refusal(dumps(worked_example()) + more)
    assert isinstance(error, errors.LengthError)


def test_verify_lists_every_fault_by_part(tmp_path):
    path = tmp_path / "x.vblora"
    data = bytearray(dumps(worked_example()))
    data[0x140] ^= 1  # bank
    data[0x13F] = 1  # padding before it
    data[0x1C0] ^= 1  # weights
    path.write_bytes(data)
    report = verify(path)
    assert not report.ok
    assert [problem.part for problem in report.problems] == ["before bank", "bank", "weights"]
    assert report.digest == digest(worked_example())
    assert all(problem.file == str(path) for problem in report.problems)


def test_verify_of_a_sound_file_gives_its_digest(tmp_path):
    path = tmp_path / "x.vblora"
    written = save(worked_example(), path)
    report = verify(path)
    assert report.ok
    assert report.digest == written == digest(worked_example())


def test_damage_is_ignored_only_on_request(tmp_path):
    path = tmp_path / "x.vblora"
    data = bytearray(dumps(worked_example()))
    data[0x180] = 99  # an index past the bank
    path.write_bytes(data)
    with pytest.raises(errors.ChecksumError, match="indices"):
        load(path)
    assert load(path, verify=False).indices[0, 0] == 99


VERDICTS = json.loads((CORPUS / "verdicts.json").read_text())["invalid"]
DATA_RULES = ("padding-", "damaged-", "hash-of-zeros")
"""Files that break a rule of sections 2 and 3 that is marked *data* in the specification."""


@pytest.mark.parametrize("name", VERDICTS)
def test_without_verification_only_checks_of_the_data_are_skipped(name):
    """Earlier, names in the metadata and the config were not checked; 33 of these files were
    accepted."""
    data = (CORPUS / "invalid" / f"{name}.vblora").read_bytes()
    marked = VERDICTS[name]["rule"].startswith("7") or name.startswith(DATA_RULES)
    if not marked:
        with pytest.raises(errors.VbfmtError):
            loads(data, verify=False)


def test_a_trusted_digest_detects_tampering_that_checksums_cannot(tmp_path):
    """A weight is changed and every checksum corrected."""
    path = tmp_path / "x.vblora"
    trusted = save(worked_example(), path)
    tampered = forge.with_section(
        path.read_bytes(), 2, lambda content: struct.pack_into("<f", content, 0, 0.125)
    )
    path.write_bytes(tampered)
    assert verify(path).ok
    assert load(path) != worked_example()
    with pytest.raises(errors.DigestError, match=f"{path}.*expected {trusted}"):
        load(path, digest=trusted)
    report = verify(path, digest=trusted)
    assert [problem.kind for problem in report.problems] == ["digest"]


@pytest.mark.parametrize("wrong", ["", "sha256:", "0" * 64, "md5:" + "0" * 32])
def test_an_invalid_digest_matches_nothing(tmp_path, wrong):
    """For example, an empty variable in a script must not match."""
    path = tmp_path / "x.vblora"
    save(worked_example(), path)
    with pytest.raises(errors.DigestError):
        load(path, digest=wrong)
    assert not verify(path, digest=wrong).ok


def test_unverified_factors_never_read_past_the_bank():
    data = bytearray(dumps(worked_example()))
    data[0x180] = 99
    a, _ = loads(bytes(data), verify=False).factors("layer")
    assert np.isfinite(a).all()


def test_errors_of_files_name_the_file(tmp_path):
    path = tmp_path / "x.vblora"
    path.write_bytes(b"PK\3\4 something else")
    with pytest.raises(errors.MagicError) as error:
        load(path)
    assert str(error.value) == (
        f"not a packed VB-LoRA adapter in {path}: preamble: found 50 4b 03 04 20 73 6f 6d, "
        "expected 89 56 42 4c 0d 0a 1a 0a; make one with: vbfmt pack CHECKPOINT -o FILE.vblora"
    )


@pytest.mark.parametrize("mmap", [True, False])
def test_loaded_arrays_are_aligned_views_that_cannot_be_written(tmp_path, mmap):
    path = tmp_path / "x.vblora"
    save(_adapter_of_bank(300), path)
    adapter = load(path, mmap=mmap)
    for array in (adapter.bank, adapter.indices, adapter.weights):
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert not mmap or array.ctypes.data % 64 == 0


def test_a_file_may_be_replaced_while_it_is_mapped(tmp_path):
    path = tmp_path / "x.vblora"
    save(worked_example(), path)
    mapped = load(path)
    other = dataclasses.replace(worked_example(), bank=worked_example().bank * 2)
    save(other, path, overwrite=True)
    assert mapped == worked_example()
    assert load(path) == other


def test_nothing_is_overwritten_unless_requested(tmp_path):
    path = tmp_path / "x.vblora"
    path.write_text("precious")
    with pytest.raises(errors.OutputExistsError):
        save(worked_example(), path)
    assert path.read_text() == "precious"


def _adapter_of_bank(h):
    module = Module("m", 2, 2, 1)
    indices = np.array([[min(h, 65536) - 1, 0]] * 2, dtype="u1" if h <= 256 else "<u2")
    rows = Rows(indices, np.full((2, 1), 0.25, dtype="<f4"))
    return Adapter.from_rows(np.ones((h, 2)), {module: rows})


def _rows_of(adapter, module):
    here = adapter.rows(module.name)
    return adapter.indices[here], adapter.weights[here]


def _shuffled(mapping, random):
    items = list(mapping.items())
    random.shuffle(items)
    return dict(items)


def _refusal(data):
    with pytest.raises(errors.VbfmtError) as error:
        loads(data)
    return error.value


def test_verify_compares_with_a_trusted_digest(tmp_path):
    path = tmp_path / "x.vblora"
    right = save(worked_example(), path)
    assert verify(path, digest=right).ok
    wrong = "sha256:" + "0" * 64
    (problem,) = verify(path, digest=wrong).problems
    assert isinstance(problem, errors.DigestError)
    assert (problem.found, problem.expected, problem.file) == (right, wrong, str(path))


def test_a_missing_path_is_not_searched_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vbfmt.converters", None)  # its import would fail
    with pytest.raises(FileNotFoundError):
        load("me/adapter")
    with pytest.raises(ImportError):
        load("hf://me/adapter")


AUDITED = """
import sys
import vbfmt

def load_all():
    for path in paths:
        try:
            vbfmt.load(path, banks=banks)
        except vbfmt.errors.VbfmtError:
            pass

banks, *paths = sys.argv[1:]
load_all()  # what is imported once is imported
seen = []
sys.addaudithook(lambda event, arguments: seen.append(event))
load_all()
print(*sorted({event.partition(".")[0] if event != "os.listdir" else event for event in seen}))
"""


def test_reading_runs_nothing_and_imports_nothing():
    """Python's audit hooks report everything that is compiled, imported, started or unpickled."""
    folder = Path(__file__).parents[1] / "spec" / "corpus"
    paths = sorted(map(str, folder.glob("*alid/*.vblora")))
    assert len(paths) > 200
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, str(folder / "banks"), *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "open" in done.stdout.split()
    assert set(done.stdout.split()) <= {"open", "mmap", "os", "os.listdir", "array"}


def test_only_adapters_can_be_saved(tmp_path):
    with pytest.raises(errors.ConfigError, match="not an adapter: found str.*save_packed"):
        save(str(tmp_path / "x.vblora"), tmp_path / "y.vblora")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".safetensors", ".bin", ".PT", ".pth", ".gguf", ".bank"])
def test_a_packed_file_cannot_have_the_name_of_another_form(tmp_path, ending):
    """Otherwise, ``vbfmt pack`` would read it as a checkpoint."""
    path, good = tmp_path / f"m{ending}", tmp_path / "m.vblora"
    save(worked_example(), good)
    for write in (
        lambda: save(worked_example(), path),
        lambda: banks.split(good, path),
        lambda: banks.join(good, path),
    ):
        with pytest.raises(errors.TargetError, match=f"found {ending}, expected a name with"):
            write()
    assert [each.name for each in tmp_path.iterdir()] == ["m.vblora"]


def test_a_report_is_true_if_and_only_if_the_file_is_valid(tmp_path):
    path = tmp_path / "x.vblora"
    save(worked_example(), path)
    assert verify(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert not verify(path)
