"""Store many adapters by digest, each only once, with names that point to them.

>>> from vbfmt.store import Store
>>> store = Store("adapters", create=True)         # or "s3://bucket/prefix"
>>> store.add("alice.vblora", name="alice")
'sha256:…'
>>> adapter = store.open("alice")                  # verified; banks are shared

A server needs adapters that neither change nor move while it uses them:

>>> digest = store.resolve("alice")                # a name may point elsewhere later
>>> path = store.path(digest)                      # a file that never changes, without its bank
>>> vbfmt.load(path, banks=store)
>>> lease = store.lease(digest)                    # not removed until the lease expires
>>> lease.renew()                                  # for another hour from now

`resolve` raises `UnknownError` for an unknown name and `StoreError` for an invalid one. No name can
refer to a file outside the store. The methods above, `tag` and `entries` are stable.
"""

from vbfmt.store.base import ANY, Collected, Entry, Stats, Store
from vbfmt.store.leases import Lease

__all__ = ["ANY", "Collected", "Entry", "Lease", "Stats", "Store"]
