"""Random sequences of operations on adapters, compared with a simple model: an output is complete
until it is replaced, and damage is always detected."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.strategies import adapters
from vbfmt import Adapter, digest, dumps, errors, load, loads, save, verify
from vbfmt.converters import lora, peft
from vbfmt.converters._files import safetensors

FILES = st.sampled_from(["a.vblora", "b.vblora", "ä.vblora"])
FOLDERS = st.sampled_from(["one", "two"])
BOTH_WAYS = st.booleans()


class Life(RuleBasedStateMachine):
    """The model: the content of each file, each folder's adapter, and the adapters in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.files: dict[str, tuple[bytes, Adapter]] = {}  # content; expected adapter
        self.folders: dict[str, Adapter] = {}
        self.expanded: dict[str, Adapter] = {}
        self.stale: set[str] = set()
        self.crashes = 0
        self.held: list[tuple[Adapter, bytes]] = []
        self.known: list[Adapter] = []

    def teardown(self) -> None:
        self.held.clear()
        shutil.rmtree(self.home)

    @initialize(first=adapters(plain=True))
    def begin(self, first: Adapter) -> None:
        self.known.append(first)

    def chosen(self, data: st.DataObject) -> Adapter:
        return self.known[data.draw(st.integers(0, len(self.known) - 1), label="adapter")]

    def sound(self, name: str) -> bool:
        found, meant = self.files[name]
        return found == dumps(meant)

    @rule(adapter=adapters() | adapters(plain=True))
    def create(self, adapter: Adapter) -> None:
        self.known.append(adapter)
        assert loads(dumps(adapter), digest=digest(adapter)) == adapter

    @rule(name=FILES, overwrite=BOTH_WAYS, data=st.data())
    def save(self, name: str, overwrite: bool, data: st.DataObject) -> None:
        adapter = self.chosen(data)
        if name in self.files and not overwrite:
            with pytest.raises(errors.OutputExistsError):
                save(adapter, self.home / name)
            return
        assert save(adapter, self.home / name, overwrite=overwrite) == digest(adapter)
        self.files[name] = (dumps(adapter), adapter)
        self.swept(name)

    @rule(name=FILES, mmap=BOTH_WAYS, trust=BOTH_WAYS)
    def load(self, name: str, mmap: bool, trust: bool) -> None:
        path = self.home / name
        if name not in self.files:
            with pytest.raises(errors.StorageError):
                load(path, mmap=mmap)
            return
        _, meant = self.files[name]
        trusted = digest(meant) if trust else None
        if not self.sound(name):
            with pytest.raises(errors.VbfmtError) as error:
                load(path, mmap=mmap, digest=trusted)
            assert error.value.part
            assert str(path) in str(error.value)
            return
        found = load(path, mmap=mmap, digest=trusted)
        assert found == meant
        self.held.append((found, dumps(meant)))

    @rule(name=FILES)
    def verify(self, name: str) -> None:
        if name not in self.files:
            return
        report = verify(self.home / name)
        assert report.ok == self.sound(name)
        if report.ok:
            assert report.digest == digest(self.files[name][1])

    @rule(name=FILES, other=FILES)
    def ask_for_another(self, name: str, other: str) -> None:
        if name in self.files and other in self.files:
            _, wanted = self.files[other]
            same = digest(wanted) == digest(self.files[name][1])
            report = verify(self.home / name, digest=digest(wanted))
            assert report.ok == (self.sound(name) and same)

    @rule(
        name=FILES,
        how=st.sampled_from(["bit", "bit", "cut", "append"]),
        random=st.randoms(use_true_random=False),
    )
    def damage(self, name: str, how: str, random: Random) -> None:
        """Damage a file as a disk or a transfer does: it is replaced by a damaged copy."""
        if name not in self.files or not self.files[name][0]:
            return
        found, meant = self.files[name]
        place = random.randrange(len(found))
        if how == "bit":
            bit = 1 << random.randrange(8)
            found = found[:place] + bytes([found[place] ^ bit]) + found[place + 1 :]
        else:
            found = found[:place] if how == "cut" else found + bytes(place + 1)
        temporary = self.home / "transfer"
        temporary.write_bytes(found)
        temporary.rename(self.home / name)
        self.files[name] = (found, meant)
        assert verify(self.home / name).ok == self.sound(name)

    @rule(name=FILES)
    def remove(self, name: str) -> None:
        if self.files.pop(name, None):
            (self.home / name).unlink()

    @rule(name=FILES | FOLDERS, folder=BOTH_WAYS)
    def crash(self, name: str, folder: bool) -> None:
        """Kill a writer of `name`."""
        left = self.home / f".{name}.{self.crashes:012x}.partial"
        if folder:
            left.mkdir()
            (left / "half").touch()
        else:
            left.write_bytes(b"half")
        self.stale.add(left.name)
        self.crashes += 1

    def swept(self, name: str) -> None:
        self.stale = {left for left in self.stale if not left.startswith(f".{name}.")}

    @rule(name=FOLDERS, overwrite=BOTH_WAYS, data=st.data())
    def unpack(self, name: str, overwrite: bool, data: st.DataObject) -> None:
        adapter = self.chosen(data)
        path = self.home / name
        if len({module.rank for module in adapter}) > 1:
            with pytest.raises(errors.TargetError):
                peft.write(adapter, path, overwrite=overwrite)
        elif name in self.folders and not overwrite:
            with pytest.raises(errors.OutputExistsError):
                peft.write(adapter, path)
        else:
            peft.write(adapter, path, overwrite=overwrite)
            self.folders[name] = adapter
            self.swept(name)

    @rule(name=FOLDERS)
    def pack(self, name: str) -> None:
        """Pack an unpacked folder. It must give the same adapter, and the same bytes when packed
        again."""
        if name not in self.folders:
            return
        meant = self.folders[name]
        try:
            found = peft.read(self.home / name)
        except errors.VbfmtError:
            # Any name and tensor can be packed, but PEFT's keys cannot express all of them.
            assert not plain(meant)
            return
        if plain(meant):
            assert found == dataclasses.replace(meant, config=found.config)
            self.known.append(found)

    @rule(name=FOLDERS, data=st.data())
    def expand(self, name: str, data: st.DataObject) -> None:
        adapter = self.chosen(data)
        if not plain(adapter):
            return
        path = self.home / f"{name}-lora"
        lora.write(adapter, path, overwrite=True)
        self.expanded[path.name] = adapter
        tensors = safetensors.read(path / "adapter_model.safetensors").tensors
        for module in adapter:
            for which, factor in zip("AB", adapter.factors(module.name), strict=True):
                tensor = tensors[f"base_model.model.{module.name}.lora_{which}.weight"]
                np.testing.assert_array_equal(tensor.numpy(), factor)

    @invariant()
    def nothing_else_is_there(self) -> None:
        expected = {*self.files, *self.folders, *self.expanded, *self.stale}
        assert set(os.listdir(self.home)) == expected

    @invariant()
    def files_are_what_was_put_there(self) -> None:
        for name, (found, _) in self.files.items():
            assert (self.home / name).read_bytes() == found

    @invariant()
    def what_is_held_stays_what_it_was(self) -> None:
        for adapter, data in self.held:
            assert dumps(adapter) == data


def plain(adapter: Adapter) -> bool:
    """Return whether PEFT's form can hold the whole adapter."""
    return (
        all(module.name.endswith(".lin") for module in adapter)
        and not adapter.tensors
        and not adapter.metadata
        and adapter.base_revision is None
    )


Life.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestLife = Life.TestCase
