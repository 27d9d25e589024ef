"""PyTorch's own files (pickles), read without running their code."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.converters.test_peft import CONFIG, logits_form, read  # noqa: E402
from vbfmt import errors  # noqa: E402
from vbfmt.converters import peft  # noqa: E402
from vbfmt.converters._files import pickle as ours  # noqa: E402


def test_a_bin_file_is_the_same_adapter(tmp_path):
    arrays = logits_form()
    state = {key: torch.from_numpy(array) for key, array in arrays.items()}
    torch.save(state, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(str(CONFIG).replace("'", '"'))
    assert peft.read(tmp_path) == read(arrays)
    assert peft.read(tmp_path / "adapter_model.bin") == read(arrays)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "int64", "bool"])
def test_every_dtype_and_layout_is_read(tmp_path, dtype):
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    torch.save({"a": tensor.T, "s": tensor[0, 1]}, tmp_path / "x.bin")
    found = ours.read(tmp_path / "x.bin")
    assert found["a"].numpy().tolist() == tensor.T.tolist()
    assert found["a"].shape == (3, 2)
    assert found["s"].shape == ()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch boom",)


@pytest.mark.parametrize("writer", [pickle.dumps, None])
def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch, writer):
    monkeypatch.chdir(tmp_path)
    if writer:
        (tmp_path / "x.bin").write_bytes(writer({"a": Bomb()}))
    else:
        torch.save({"a": Bomb()}, tmp_path / "x.bin")
    with pytest.raises(errors.SourceError, match=r"refused.*(?i:unsupported)"):
        ours.read(tmp_path / "x.bin")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("data", [b"", b"no pickle", b"\x80\x04.", b"PK\x03\x04"])
def test_a_file_that_is_not_a_pickle_is_one_error(tmp_path, data):
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(errors.SourceError, match="refused"):
        ours.read(tmp_path / "x.bin")


@pytest.mark.parametrize(
    "state",
    [
        [torch.zeros(1)],
        {"a": 1},
        {1: torch.zeros(1)},
        {"a": torch.zeros(2).to_sparse()},
        {"a": torch.zeros(2, device="meta")},
    ],
)
def test_a_pickle_that_is_not_a_state_dict_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "x.bin")
    with pytest.raises(errors.SourceError, match="not a"):
        ours.read(tmp_path / "x.bin")


@pytest.mark.parametrize("sizes", [(2**40,), (2**33,), (2**20, 2**20), (2,)])
def test_elements_that_are_not_stored_are_refused(tmp_path, sizes):
    """A file of 2 kB that claims 4 TB."""
    torch.save({"a": torch.ones(1).expand(sizes)}, tmp_path / "x.bin")
    with pytest.raises(errors.SourceError, match="more elements than the file holds"):
        ours.read(tmp_path / "x.bin")


def test_many_copies_of_one_stored_tensor_are_refused(tmp_path):
    stored = torch.ones(100, 100)
    torch.save({str(n): stored.T for n in range(20)}, tmp_path / "x.bin")
    with pytest.raises(errors.SourceError, match="more elements than the file holds"):
        ours.read(tmp_path / "x.bin")


def test_a_tensor_that_is_stored_negated_is_refused(tmp_path):
    torch.save({"a": torch._neg_view(torch.tensor([1.0, -2.0]))}, tmp_path / "x.bin")
    with pytest.raises(errors.SourceError, match="stored negated"):
        ours.read(tmp_path / "x.bin")


def test_a_missing_file_is_one_error(tmp_path):
    with pytest.raises(errors.StorageError, match="cannot read"):
        ours.read(tmp_path / "x.bin")


ARCHIVE, ROW = True, False
STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.int16)}


def saved(state, *, archive=ARCHIVE) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=archive)
    return file.getvalue()


def records_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return file.getvalue()


def refusal(data: bytes) -> str:
    with pytest.raises(errors.SourceError) as caught:
        ours.parse(memoryview(data))
    return str(caught.value)


@pytest.mark.parametrize("archive", [ARCHIVE, ROW])
def test_both_file_formats_are_read_as_torch_reads_them(archive):
    linear = torch.nn.Linear(3, 2).half()
    state = {**STATE, **linear.state_dict(), "p": torch.nn.Parameter(torch.ones(2)[1:])}
    found = ours.parse(memoryview(saved(state, archive=archive)))
    assert list(found) == list(state)
    for name, tensor in found.items():
        assert np.array_equal(tensor.numpy(), state[name].detach().numpy())


def test_torch_is_not_imported_to_read_a_pickle(tmp_path):
    (tmp_path / "x.bin").write_bytes(saved(STATE))
    code = (
        "import sys; from vbfmt.converters._files import pickle;"
        f"assert len(pickle.read({str(tmp_path / 'x.bin')!r})) == 2;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_legacy_file_that_leaves_storages_out_is_refused():
    """PyTorch returns uninitialized memory in their place."""
    data = saved({"a": torch.zeros(300_000)}, archive=ROW)
    keys = data.rindex(b"\x80\x02]")
    short = data[:keys] + b"\x80\x02]q\x00."
    assert "storages are missing" in refusal(short)


def test_a_legacy_file_with_fewer_elements_than_claimed_is_refused():
    data = saved({"a": torch.ones(4)}, archive=ROW)
    assert data.endswith(struct.pack("<q4f", 4, 1, 1, 1, 1))
    cut = data[:-24] + struct.pack("<q2f", 2, 1, 1)
    for wrong in (cut, data[:-4], data + b"\0", data[:-24] + struct.pack("<q4f", 3, 1, 1, 1, 1)):
        refusal(wrong)


@pytest.mark.parametrize("change", [lambda x: x[:-4], lambda x: x + b"\0" * 4, lambda x: b""])
def test_a_record_of_the_wrong_length_is_refused(change):
    records = records_of(saved(STATE))
    name = next(name for name in records if name.endswith("data/0"))
    records[name] = change(records[name])
    assert "storage '0' has" in refusal(archive_of(records))


def test_a_missing_record_is_refused():
    records = records_of(saved(STATE))
    kept = {name: data for name, data in records.items() if not name.endswith("data/1")}
    assert "storage '1' is missing" in refusal(archive_of(kept))


def test_compressed_records_are_refused():
    """If they were mapped, the values would be wrong."""
    assert "is compressed" in refusal(archive_of(records_of(saved(STATE)), zipfile.ZIP_DEFLATED))


def test_a_record_marked_as_a_folder_is_refused():
    """PyTorch returns uninitialized memory in its place."""
    data = bytearray(archive_of(records_of(saved(STATE))))
    entry = data.index(b"PK\x01\x02")
    data[entry + 38] |= 0x10
    assert "is a folder" in refusal(bytes(data))


def test_a_decompression_bomb_is_refused_in_little_memory():
    """A file of 3 MB that unpacks to 3 GB, and one whose records all share the same bytes."""
    records = records_of(saved(STATE))
    name = next(name for name in records if name.endswith("data.pkl"))
    bomb = archive_of({**records, name: b"]" * (32 << 20)}, zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(bomb)
    tracemalloc.start()
    try:
        for program in (b"]", b"}", b"(", b"N", b"X\x02\0\0\0ab", b"r\xff\xff\xff\x7f"):
            data = archive_of({**records, name: b"\x80\x02N" + program * (4 << 20)})
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            refusal(data)
            assert tracemalloc.get_traced_memory()[1] - before < 64 << 20
    finally:
        tracemalloc.stop()


def test_records_that_overlap_are_refused():
    records = records_of(saved(STATE))
    data = bytearray(archive_of(records))
    directory = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data/1"))
    first = data.index(b"data/0", data.index(b"PK\x01\x02")) - 46 - len("archive/")
    data[directory + 42 : directory + 46] = data[first + 42 : first + 46]
    refusal(bytes(data))


def test_many_names_for_one_storage_are_refused():
    """300 names of one tensor of 1 MB would be 300 MB. Tied weights have a few names only."""
    tensor = torch.ones(1 << 18)
    assert "more than 4 times the file's size" in refusal(
        saved({str(n): tensor for n in range(300)})
    )
    tied = ours.parse(memoryview(saved({str(n): tensor for n in range(4)})))
    assert {name: tensor.data.size for name, tensor in tied.items()} == dict.fromkeys(
        "0123", 4 << 18
    )


def test_a_key_that_is_not_valid_unicode_is_one_line():
    data = saved({"abc": torch.ones(1)}, archive=ROW)
    assert refusal(data.replace(b"abc", b"\xed\xb3\xbf")).isprintable()


def test_a_nested_tensor_is_one_line():
    nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    assert "refused" in refusal(saved({"a": nested}))


@pytest.mark.parametrize("archive", [ARCHIVE, ROW])
def test_a_tensor_beyond_its_storage_is_refused(archive):
    """PyTorch enlarges the storage with uninitialized memory."""
    data = saved({"a": torch.ones(200)[:77]}, archive=archive)
    if archive:
        records = records_of(data)
        name = next(name for name in records if name.endswith("data.pkl"))
        assert records[name].count(b"KM\x85") == 1
        records[name] = records[name].replace(b"KM\x85", b"K\xc9\x85")
        data = archive_of(records)
    else:
        data = data.replace(b"KM\x85", b"K\xc9\x85")
    assert "a tensor past the end of its storage" in refusal(data)


def test_big_endian_values_are_refused():
    records = records_of(saved(STATE))
    name = next(name for name in records if name.endswith("byteorder"))
    assert "big-endian" in refusal(archive_of({**records, name: b"big"}))


def test_every_truncation_is_refused():
    for archive in (ARCHIVE, ROW):
        data = saved(STATE, archive=archive)
        for length in range(len(data)):
            refusal(data[:length])


@pytest.mark.parametrize("archive", [True, False])
def test_a_bool_that_is_neither_true_nor_false_is_refused(archive):
    """PyTorch keeps such a byte, or replaces it with 1 when it copies."""
    whole = torch.tensor([5, 1, 0], dtype=torch.uint8).view(torch.bool)
    data = saved({"x": whole}, archive=archive)
    assert "not a boolean: x: found byte 5" in refusal(data)


def changed(name: str, change) -> bytes:
    """Return an archive of `STATE` with one record changed."""
    records = records_of(saved(STATE))
    whole = next(each for each in records if each.endswith(name))
    before = records[whole]
    records[whole] = change(before)
    assert records[whole] != before
    return archive_of(records)


@pytest.mark.parametrize(
    ("without", "also"),
    [("archive/data.pkl", None), (None, "constants.pkl"), (None, ".data/version")],
)
def test_an_archive_that_torch_save_did_not_write_is_refused(without, also):
    """TorchScript's archives have code as well as tensors."""
    records = records_of(saved(STATE))
    kept = {name: content for name, content in records.items() if name != without}
    if also:
        kept[f"archive/{also}"] = b""
    assert "not an archive of torch.save" in refusal(archive_of(kept))


def test_an_overlong_metadata_record_is_refused():
    assert "record 'byteorder' has 10000 bytes" in refusal(
        changed("byteorder", lambda content: b"little".ljust(10_000))
    )


def test_a_program_that_is_too_long_is_refused_before_it_is_run(monkeypatch):
    monkeypatch.setattr(ours, "LONGEST_PROGRAM", 100)
    assert "bytes, more than 100" in refusal(saved(STATE))


def test_copies_of_overlapping_views_are_limited_by_the_file_size():
    stored = torch.ones(100, 100)
    assert "copies of more than the file's size" in refusal(
        saved({"a": stored.T, "b": stored[:90].T})
    )


def test_a_repeated_name_is_refused():
    data = changed("data.pkl", lambda program: program.replace(b"X\x01\0\0\0b", b"X\x01\0\0\0a"))
    assert "duplicate key 'a'" in refusal(data)


def test_a_shape_and_strides_of_different_lengths_are_refused():
    data = changed("data.pkl", lambda program: program.replace(b"K\x03K\x01\x86", b"K\x03\x85"))
    assert "an invalid description of a tensor" in refusal(data)


def test_a_parameter_that_is_not_a_tensor_is_refused():
    program = (
        b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_parameter\n"
        b"N\x89ccollections\nOrderedDict\n)R\x87Rs."
    )
    assert "a parameter that is not a tensor" in refusal(changed("data.pkl", lambda _: program))


def test_a_view_of_a_storage_is_refused():
    """PyTorch before 0.4 could describe one storage as a part of another."""
    data = saved({"a": torch.ones(4)}, archive=ROW)
    assert data.count(b"K\x04Nt") == 1
    assert "a view of a storage" in refusal(data.replace(b"K\x04Nt", b"K\x04K\x01t"))


def test_numbers_in_addition_to_the_state_are_ignored():
    found = ours.parse(memoryview(saved({"lr": 0.5, "state_dict": STATE})))
    assert list(found) == list(STATE)
