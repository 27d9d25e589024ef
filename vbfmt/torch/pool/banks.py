"""Keep one copy of each vector bank on the device, however many adapters use it."""

from __future__ import annotations

import hashlib
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbfmt.errors import ContentError
from vbfmt.torch.pool.free_runs import FreeRuns

_GROWTH = 8  # the memory grows by at least 1/8, because growing copies it


@dataclass(eq=False)
class Bank:
    """A bank on the device.

    Attributes:
        key: the digest of its content.
        start: position of its first element in `Banks.memory`, a multiple of b.
        shape: (h, b).
        users: number of adapters that use it.
    """

    key: bytes
    start: int
    shape: tuple[int, int]
    users: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return 4 * self.size


class Banks:
    """All banks, each once, in one tensor.

    Attributes:
        memory: (elements,) float32. Growing replaces it by a larger tensor with the same content at
            the same positions. Unused elements are finite, because rows with weight zero refer to
            them.
    """

    def __init__(self, device: torch.device) -> None:
        self.memory = _zeros(0, device)
        self._free = FreeRuns(0)
        self._banks: dict[bytes, Bank] = {}
        self._keys = _Keys()

    @property
    def reserved(self) -> int:
        """Number of bytes that are allocated, in use or not."""
        return 4 * self.memory.numel()

    def key(self, bank: NDArray[np.float32]) -> bytes:
        """Return the digest of a bank's shape and bits. The caller need not hold the lock.

        Raises:
            ContentError: the bank is not finite.
        """
        return self._keys.of(bank)

    def find(self, key: bytes) -> Bank | None:
        """Return the bank with this digest, or None if it is not on the device."""
        return self._banks.get(key)

    def use(self, key: bytes, bank: NDArray[np.float32]) -> Bank:
        """Add a user of a bank, and copy the bank to the device if it is not there."""
        found = self._banks.get(key)
        if found is None:
            start = self._allocate(bank.size, bank.shape[1])
            found = Bank(key, start, (bank.shape[0], bank.shape[1]))
            values = torch.from_numpy(np.array(bank, dtype=np.float32).reshape(-1))
            self.memory[start : start + bank.size].copy_(values)
            self._banks[key] = found
        found.users += 1
        return found

    def release(self, bank: Bank) -> bool:
        """Remove a user, and free the bank if it was the last. Return whether it was."""
        bank.users -= 1
        if bank.users:
            return False
        del self._banks[bank.key]
        self._free.free(bank.start, bank.size)
        return True

    def _allocate(self, size: int, align: int) -> int:
        start = self._free.allocate(size, align)
        if start is not None:
            return start
        old = self.memory
        more = max(size + align, old.numel() // _GROWTH)
        self.memory = _zeros(old.numel() + more, old.device)
        self.memory[: old.numel()].copy_(old)
        self._free.free(old.numel(), more)
        start = self._free.allocate(size, align)
        assert start is not None
        return start


class _Keys:
    """Digests of banks. For a read-only array, the digest is computed only once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], bytes]] = {}
        self._lock = threading.Lock()

    def of(self, bank: NDArray[np.float32]) -> bytes:
        with self._lock:
            known = self._known.get(id(bank))
        if known is not None and known[0]() is bank:
            return known[1]
        if not np.isfinite(bank).all():
            raise ContentError("the bank is not finite", part="bank")
        content = np.ascontiguousarray(bank, dtype="<f4")
        digest = hashlib.blake2b(repr(bank.shape).encode(), digest_size=32)
        digest.update(content.view(np.uint8).reshape(-1).data)
        if not _writable(bank):
            self._keep(bank, digest.digest())
        return digest.digest()

    def _keep(self, bank: NDArray[np.float32], key: bytes) -> None:
        with self._lock:
            self._known = {at: known for at, known in self._known.items() if known[0]() is not None}
            self._known[id(bank)] = weakref.ref(bank), key


def _writable(array: Any) -> bool:
    """Return whether an array, or one that it is a view of, is writable."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return True
        array = array.base
    return isinstance(array, memoryview) and not array.readonly


def _zeros(size: int, device: torch.device) -> Tensor:
    # Not an inference tensor, even if the caller is in inference mode.
    with torch.inference_mode(False):
        return torch.zeros(size, dtype=torch.float32, device=device)
