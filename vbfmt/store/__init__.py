"""A store: many adapters, each once, by digest, with names that point to them.

>>> from vbfmt.store import Store
>>> store = Store("adapters", create=True)         # or "s3://bucket/prefix"
>>> store.add("alice.vblora", name="alice")
'sha256:…'
>>> adapter = store.open("alice")                  # verified; banks are shared

For a server, whose adapters must stay what and where they are while it uses them:

>>> digest = store.resolve("alice")                # names move, digests do not
>>> path = store.path(digest)                      # never changes; its bank: banks=store
>>> vbfmt.load(path, banks=store)
>>> lease = store.lease(digest)                    # not collected while it lasts;
>>> lease.renew()                                  # one hour, from now on, unless renewed

`resolve` answers `UnknownError` for a name that is not there and `StoreError` for one that could
never be; no name leaves the store. These five and `add`, `tag`, `entries` are meant to stay.
"""

from vbfmt.store.base import ANY, Collected, Entry, Stats, Store
from vbfmt.store.leases import Lease

__all__ = ["ANY", "Collected", "Entry", "Lease", "Stats", "Store"]
