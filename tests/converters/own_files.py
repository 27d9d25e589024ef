"""Import modules of a package from its wheel, without installing the package.

All other modules of the package are fakes.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import zipfile
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

import pytest


class OwnFiles:
    """An importer that loads the named modules of a package from its wheel, and fakes the
    others."""

    def __init__(self, wheel, folder, *modules):
        self.package = modules[0].partition(".")[0]
        self.files = {}
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            for module in modules:
                stem = module.replace(".", "/")
                name = f"{stem}.py" if f"{stem}.py" in names else f"{stem}/__init__.py"
                self.files[module] = archive.extract(name, folder)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != self.package:
            return None
        if name in self.files:
            return importlib.util.spec_from_file_location(name, self.files[name])
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return MagicMock(name=spec.name, __path__=[], __spec__=spec)

    def exec_module(self, module):
        pass


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    before = set(sys.modules)

    def use(variable, *modules):
        if variable not in os.environ:
            pytest.skip(f"{variable} does not name a wheel")
        finder = OwnFiles(os.environ[variable], tmp_path, *modules)
        monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
        return [importlib.import_module(module) for module in modules]

    yield use
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("vllm", "sglang"):
            del sys.modules[name]
