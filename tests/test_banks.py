"""An adapter in two forms: with its bank embedded, and with an external bank."""

from __future__ import annotations

import dataclasses
import gc
import os
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from spec.corpus import thin
from spec.golden.make import worked_example
from tests import forge
from tests.strategies import adapters
from vbfmt import banks, digest, dumps, errors, load, loads, save, verify
from vbfmt._files import banks as bank_files
from vbfmt._format import external_bank
from vbfmt._format.packed_file import PackedFile
from vbfmt.packed import load_with_form, write

ADAPTER = worked_example()
BANK = ADAPTER.bank.tobytes()
NAME = thin.file_name(BANK)


@pytest.fixture(autouse=True)
def _none_known():
    """Remove the banks that other tests have loaded from memory."""
    gc.collect()
    bank_files._shared.clear()


@pytest.fixture
def pair(tmp_path):
    """Return an embedded file, and a thin file with its bank next to it."""
    save(ADAPTER, tmp_path / "whole.vblora")
    save(ADAPTER, tmp_path / "thin.vblora", bank="external")
    return tmp_path / "whole.vblora", tmp_path / "thin.vblora"


@given(adapters())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_both_forms_have_the_same_digest_and_can_be_converted(adapter):
    whole, without = dumps(adapter), dumps(adapter, bank="external")
    assert without == thin.thin(whole)
    parsed = PackedFile.parse(without)
    assert parsed.digest == digest(adapter)
    front = PackedFile.parse(whole).front
    assert parsed.embedded_front == front
    assert external_bank.thin_front(front) == parsed.front


@given(adapters())
@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_thin_then_joined_then_split_again_is_the_same_in_every_byte(tmp_path, adapter):
    file, joined, split = (tmp_path / name for name in ("a", "b", "c"))
    wrote = write(adapter, file, bank="external", overwrite=True)
    assert banks.join(file, joined, overwrite=True).digest == wrote.digest == digest(adapter)
    assert joined.read_bytes() == dumps(adapter)
    again = banks.split(joined, split, overwrite=True)
    assert (again.digest, again.bank) == (wrote.digest, wrote.bank)
    assert split.read_bytes() == file.read_bytes()
    assert load(split) == adapter


@pytest.mark.parametrize("name", thin.valid())
def test_conversion_keeps_the_whole_content(tmp_path, name):
    data, _ = thin.valid()[name]
    file, without, joined = (tmp_path / name for name in ("a", "b", "c"))
    file.write_bytes(data)
    done = banks.split(file, without)
    assert without.read_bytes() == thin.thin(data)
    assert done.digest == load_with_form(file)[1] == load_with_form(without)[1]
    banks.join(without, joined)
    assert joined.read_bytes() == data


def test_a_file_can_be_converted_in_place_and_to_its_own_form(pair):
    whole, without = pair
    before = without.read_bytes()
    banks.split(without, without, overwrite=True)
    assert without.read_bytes() == before
    banks.join(without, without, overwrite=True)
    banks.join(without, without, overwrite=True)
    assert without.read_bytes() == whole.read_bytes()
    banks.split(without, without, overwrite=True)
    assert without.read_bytes() == before


def test_adapters_with_one_bank_share_one_array(tmp_path):
    others = [dataclasses.replace(ADAPTER, metadata={"n": str(n)}) for n in range(3)]
    for number, one in enumerate(others):
        save(one, tmp_path / f"{number}", bank="external")
    assert sorted(os.listdir(tmp_path)) == sorted([NAME, "0", "1", "2"])
    found = [load(tmp_path / str(number)) for number in range(3)]
    assert found == others
    assert found[0].bank is found[1].bank is found[2].bank
    assert not found[0].bank.flags.writeable
    assert loads((tmp_path / "0").read_bytes(), banks=tmp_path).bank is found[0].bank


def test_threads_that_load_concurrently_share_one_array(tmp_path):
    save(ADAPTER, tmp_path / "x", bank="external")
    loaded = []
    threads = [
        threading.Thread(target=lambda: loaded.append(load(tmp_path / "x"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one.bank) for one in loaded}) == 1


def test_an_unused_bank_is_released(pair):
    before = len(bank_files._shared)
    found = load(pair[1])
    assert len(bank_files._shared) == before + 1
    del found
    gc.collect()
    assert len(bank_files._shared) == before


def test_a_loaded_adapter_outlives_its_banks_file(pair, tmp_path):
    found = load(pair[1])
    with open(tmp_path / NAME, "r+b") as stream:
        stream.truncate(3)
    assert found == ADAPTER


def test_a_bank_that_is_in_memory_is_not_read_again(pair, tmp_path):
    found = load(pair[1])
    (tmp_path / NAME).unlink()
    assert load(pair[1]).bank is found.bank


def test_where_a_bank_is_searched(pair, tmp_path):
    without = pair[1]
    far = tmp_path / "far"
    far.mkdir()
    (tmp_path / NAME).rename(far / NAME)
    with pytest.raises(errors.BankError) as error:
        load(without)
    assert str(error.value) == (
        f"vector bank not found in {without}: bank: found none in {tmp_path}, "
        f"{tmp_path / 'banks'}, expected {NAME}; put it beside the adapter, or give its folder: "
        "`banks=FOLDER`"
    )
    assert load(without, banks=far) == ADAPTER
    gc.collect()
    assert load(without, banks=[tmp_path / "nowhere", far]) == ADAPTER
    (tmp_path / "banks").mkdir()
    (far / NAME).rename(tmp_path / "banks" / NAME)
    assert load(without) == ADAPTER


@pytest.mark.parametrize("checked", [True, False])
def test_a_thin_file_cannot_be_loaded_without_its_bank(checked):
    with pytest.raises(errors.BankError, match="found none in any folder"):
        loads(dumps(ADAPTER, bank="external"), verify=checked)


def test_a_thin_file_cannot_be_verified_without_its_bank(pair, tmp_path):
    held = load(pair[1])  # even if this process knows the bank
    (tmp_path / NAME).unlink()
    report = verify(pair[1])
    assert [problem.kind for problem in report.problems] == ["bank"]
    assert report.digest == digest(held)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("content", [b"", BANK[:-1], BANK + b"\0", bytes(len(BANK))])
def test_a_wrong_bank_is_refused(pair, tmp_path, content, checked):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(errors.ChecksumError, match="not the vector bank that the adapter needs"):
        load(pair[1], verify=checked)
    (problem,) = verify(pair[1]).problems
    assert problem.file == str(tmp_path / NAME)
    with pytest.raises(errors.ChecksumError):
        save(ADAPTER, tmp_path / "another", bank="external")
    assert not (tmp_path / "another").exists()
    save(ADAPTER, tmp_path / "another", bank="external", overwrite=True)
    assert load(pair[1]) == ADAPTER


def test_every_flipped_bit_of_the_thin_file_and_of_the_bank_is_found(pair, tmp_path):
    for path in (pair[1], tmp_path / NAME):
        data = bytearray(path.read_bytes())
        for position in range(len(data)):
            for bit in range(8):
                data[position] ^= 1 << bit
                path.write_bytes(data)
                report = verify(pair[1])
                assert not report.ok, (path, position, bit)
                bank_files._shared.clear()
                with pytest.raises(errors.VbfmtError):
                    load(pair[1])
                data[position] ^= 1 << bit
        path.write_bytes(data)
        assert verify(pair[1]).ok


def test_every_truncation_of_the_thin_file_and_of_the_bank_is_found(pair, tmp_path):
    for path in (pair[1], tmp_path / NAME):
        data = path.read_bytes()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            assert not verify(pair[1]).ok, (path, length)
            bank_files._shared.clear()
            with pytest.raises(errors.VbfmtError):
                load(pair[1])
        path.write_bytes(data)


def test_no_memory_is_allocated_for_a_claimed_bank(pair, tmp_path):
    def change(header):
        header["b"] = 2**50
        header["modules"][0][1:3] = [2**51, 2**50]
        header["sections"][0][1] = 3 * 2**52

    pair[1].write_bytes(forge.with_header(pair[1].read_bytes(), change))
    with pytest.raises(errors.ChecksumError, match="found 24 bytes, expected 13510798882111488"):
        load(pair[1])


def test_if_the_output_exists_no_bank_is_written(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(errors.OutputExistsError):
        save(ADAPTER, tmp_path / "x", bank="external")
    save(ADAPTER, tmp_path / "whole")
    with pytest.raises(errors.OutputExistsError):
        banks.split(tmp_path / "whole", tmp_path / "x")
    assert sorted(os.listdir(tmp_path)) == ["whole", "x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_damaged_files_are_neither_split_nor_joined(pair, tmp_path):
    for path, work in ((pair[0], banks.split), (pair[1], banks.join)):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(errors.ChecksumError, match=str(path)):
            work(path, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_an_unknown_form_is_refused():
    with pytest.raises(errors.ConfigError, match="found 'elsewhere', expected embedded or"):
        dumps(ADAPTER, bank="elsewhere")


def test_banks_in_a_folder_are_listed(pair, tmp_path):
    other = dataclasses.replace(ADAPTER, bank=ADAPTER.bank * np.float32(2))
    save(other, tmp_path / "other.vblora", bank="external", banks=tmp_path / "banks")
    found = {one.sha256: one for one in banks.listing([tmp_path])}
    assert len(found) == 2
    one = found[NAME.removesuffix(".bank")]
    assert (one.file, one.size) == (str(tmp_path / NAME), 24)
    assert one.adapters == [str(pair[1])]
    (unused,) = banks.listing([tmp_path / NAME])
    assert unused.adapters == []
    (tmp_path / NAME).unlink()
    found = {one.sha256: one for one in banks.listing([tmp_path])}
    assert isinstance(found[one.sha256].problem, errors.BankError)
    (tmp_path / NAME).write_bytes(b"x")
    found = {one.sha256: one for one in banks.listing([tmp_path])}
    assert isinstance(found[one.sha256].problem, errors.ChecksumError)
    with pytest.raises(errors.StorageError):
        banks.listing([tmp_path / "nowhere"])
