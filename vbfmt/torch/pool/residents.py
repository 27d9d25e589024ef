"""Manage the adapters in memory, and evict some when the limit is reached."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbfmt.errors import ModelError
from vbfmt.torch.pool.banks import Bank, Banks
from vbfmt.torch.pool.layout import Layout
from vbfmt.torch.pool.own_tensors import OwnTensors
from vbfmt.torch.pool.pages import PAGE, Pages, Run, count


@dataclass(eq=False)
class Prepared:
    """An adapter that is ready to be copied into memory.

    Attributes:
        layout: layout of its bytes.
        data: its bytes, (nbytes,) uint8 on the CPU.
        key, bank: digest of its bank, and the bank.
        own: its biases and heads, on the device.
    """

    layout: Layout
    data: Tensor
    key: bytes
    bank: NDArray[np.float32]
    own: OwnTensors

    @property
    def nbytes(self) -> int:
        """Bytes on the device, without the bank."""
        return count(len(self.data)) * PAGE + self.own.nbytes


@dataclass(eq=False)
class Resident:
    """An adapter that is in memory.

    Attributes:
        name: its name for batches.
        layout, runs: layout and location of its bytes.
        bank: location of its bank.
        own: its biases and heads.
        nbytes: bytes on the device, without the bank.
        batches: number of running batches that use it.
        removed: whether it was removed or replaced. It is then freed when the last of these batches
            ends.
    """

    name: str
    layout: Layout
    runs: Sequence[Run]
    bank: Bank
    own: OwnTensors
    nbytes: int
    batches: int = 0
    removed: bool = False


class Residents:
    """The adapters in memory by name, the least recently used first. Safe to use from several
    threads.

    Attributes:
        lock: held while memory is read or written.
        limit: bytes that adapters and banks may use together; None for any number.
        used: bytes that adapters and banks use.
        evicted: number of adapters that have been evicted.
    """

    def __init__(self, device: torch.device, limit: int | None) -> None:
        self.lock = threading.RLock()
        self.pages = Pages(device)
        self.banks = Banks(device)
        self.limit = limit
        self.used = 0
        self.evicted = 0
        self._by_name: OrderedDict[str, Resident] = OrderedDict()
        self._running: set[Resident] = set()

    @property
    def names(self) -> list[str]:
        """Return all names, the least recently used first."""
        with self.lock:
            return list(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def reserved(self) -> int:
        """Bytes that are allocated on the device, in use or not."""
        with self.lock:
            own = sum(resident.own.nbytes for resident in self._all())
            return self.pages.reserved + self.banks.reserved + own

    def put(self, name: str, adapter: Prepared) -> None:
        """Add an adapter. It replaces an adapter with the same name.

        Raises:
            ModelError: the adapter does not fit beside those of running batches. Nothing is changed
                then.
        """
        with self.lock:
            old = self._by_name.get(name)
            self._make_room(adapter, first=old)
            runs = self.pages.write(adapter.data, self._allowed_growth())
            try:
                bank = self.banks.use(adapter.key, adapter.bank)
            except BaseException:  # the device has no memory left
                self.pages.free(runs)
                raise
            self.used += adapter.nbytes + (bank.nbytes if bank.users == 1 else 0)
            resident = Resident(name, adapter.layout, runs, bank, adapter.own, adapter.nbytes)
            if name in self._by_name:
                self._drop(self._by_name[name])
            self._by_name[name] = resident

    def remove(self, name: str) -> None:
        """Remove an adapter. Running batches keep it until they end.

        Raises:
            ModelError: there is no such adapter.
        """
        with self.lock:
            self._drop(self._named(name))

    def pin(self, names: Sequence[str | None]) -> list[Resident | None]:
        """Return the adapters of a batch, and keep them in memory until `unpin`.

        Raises:
            ModelError: an adapter is not in memory.
        """
        with self.lock:
            found = [None if name is None else self._named(name) for name in names]
            self.pin_again(found)
            return found

    def pin_again(self, residents: Sequence[Resident | None]) -> None:
        """Pin adapters for another batch; they are in memory or pinned already.

        Meanwhile, their names may have been given to other adapters or removed. A batch keeps the
        adapters that it began with.
        """
        with self.lock:
            for resident in residents:
                if resident is None:
                    continue
                resident.batches += 1
                self._running.add(resident)
                if self._by_name.get(resident.name) is resident:
                    self._by_name.move_to_end(resident.name)

    def pin_present(self, names: Sequence[str]) -> dict[str, Resident]:
        """Pin those of the named adapters that are in memory, and return them by name."""
        with self.lock:
            present = [name for name in names if name in self._by_name]
            found = cast("list[Resident]", self.pin(present))
            return dict(zip(present, found, strict=True))

    def unpin(self, residents: Sequence[Resident | None]) -> None:
        """Release the adapters of a batch that has ended."""
        with self.lock:
            for resident in residents:
                if resident is None:
                    continue
                resident.batches -= 1
                if not resident.batches:
                    self._running.discard(resident)
                    if resident.removed:
                        self._free(resident)

    def are_resident(self, residents: Sequence[Resident | None]) -> bool:
        """Return whether all of these adapters are still in memory under their names."""
        return all(each is None or self._by_name.get(each.name) is each for each in residents)

    def _named(self, name: str) -> Resident:
        if name not in self._by_name:
            raise ModelError(
                "no such adapter in the pool",
                found=name,
                advice="add it to the pool (again, if it was evicted)",
            )
        return self._by_name[name]

    def _all(self) -> set[Resident]:
        return {*self._by_name.values(), *self._running}

    def _make_room(self, adapter: Prepared, first: Resident | None) -> None:
        """Evict `first` and then the least recently used adapters, until this adapter fits."""
        if self.limit is None or self._fits(adapter):
            return
        needed = adapter.nbytes + adapter.bank.nbytes
        staying = sum(resident.nbytes for resident in self._running)
        banks = {resident.bank.key: resident.bank.nbytes for resident in self._running}
        banks.pop(adapter.key, None)
        least = staying + sum(banks.values()) + needed
        if least > self.limit:
            raise ModelError(
                "the adapter does not fit into the pool",
                found=f"{needed} bytes, beside {least - needed} that running batches use",
                expected=f"{self.limit} bytes in all",
                advice="create the pool with a higher limit, or use smaller batches",
            )
        leaving = [each for each in (first, *self._by_name.values()) if each and not each.batches]
        for resident in leaving:
            if not resident.removed:
                self._drop(resident)
                self.evicted += resident is not first
            if self._fits(adapter):
                return

    def _fits(self, adapter: Prepared) -> bool:
        bank = 0 if self.banks.find(adapter.key) else adapter.bank.nbytes
        return self.limit is None or self.used + adapter.nbytes + bank <= self.limit

    def _allowed_growth(self) -> int:
        """Return the number of bytes by which the pages may grow."""
        if self.limit is None:
            return 1 << 62
        return max(0, self.limit - self.pages.reserved - self.banks.reserved)

    def _drop(self, resident: Resident) -> None:
        del self._by_name[resident.name]
        resident.removed = True
        if not resident.batches:
            self._free(resident)

    def _free(self, resident: Resident) -> None:
        self.pages.free(resident.runs)
        self.used -= resident.nbytes
        if self.banks.release(resident.bank):
            self.used -= resident.bank.nbytes
