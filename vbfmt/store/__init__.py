"""A store keeps many adapters, each once, by digest, and names that point to them.

>>> from vbfmt.store import Store
>>> store = Store("adapters", create=True)         # or "s3://bucket/prefix"
>>> store.add("alice.vblora", name="alice")
'sha256:…'
>>> adapter = store.open("alice")                  # verified; banks are shared

A server needs adapters that do not change or move while it uses them:

>>> digest = store.resolve("alice")                # names move, digests do not
>>> path = store.path(digest)                      # never changes; its bank: banks=store
>>> vbfmt.load(path, banks=store)
>>> lease = store.lease(digest)                    # not collected until it expires
>>> lease.renew()                                  # for another hour from now

`resolve` raises `UnknownError` for an unknown name and `StoreError` for an invalid one; no name
leads out of the store. The methods above, `tag` and `entries` are meant to be stable.
"""

from vbfmt.store.base import ANY, Collected, Entry, Stats, Store
from vbfmt.store.leases import Lease

__all__ = ["ANY", "Collected", "Entry", "Lease", "Stats", "Store"]
