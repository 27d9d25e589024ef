"""Import `vbfmt.converters` from the folder ``converters`` of a checkout.

In an installed package, the folder is in ``vbfmt``, and Python prefers it to this file. In a
checkout, it is beside ``vbfmt``, and Python finds it through this file.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_FOLDER = Path(__file__).resolve().parents[1] / "converters"
_spec = spec_from_file_location(
    __name__, _FOLDER / "__init__.py", submodule_search_locations=[str(_FOLDER)]
)
if _spec is None or _spec.loader is None:  # pragma: no cover
    raise ImportError(f"cannot import {_FOLDER}", name=__name__)
sys.modules[__name__] = module_from_spec(_spec)
_spec.loader.exec_module(sys.modules[__name__])
