"""fusecli: fuse image features into text features by cross-attention.

    from fusecli import ImageTextFusion     the torch module, a drop-in for the published one
    from fusecli import build_module        the modules of the other methods, from a FusionConfig
    from fusecli import load_module, save_module
    from fusecli import FuseOptions, fuse_files     what `fusecli fuse` does, from Python

Names are imported when they are first used, so that `import fusecli` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fusecli._version import __version__ as __version__

if TYPE_CHECKING:
    from fusecli.errors import FuseError
    from fusecli.fusion.config import FusionConfig
    from fusecli.fusion.options import ModuleOptions
    from fusecli.fusion.options import ModuleOptions as Switches
    from fusecli.fusion.torch_modules import ImageTextFusion, build_module
    from fusecli.fusion.weights import load_module, save_module
    from fusecli.job.options import FuseOptions
    from fusecli.job.run import fuse_files
    from fusecli.maps.writer import MapOptions
    from fusecli.report.report import Report

__all__ = [
    "FuseError",
    "FuseOptions",
    "FusionConfig",
    "ImageTextFusion",
    "MapOptions",
    "ModuleOptions",
    "Report",
    "Switches",
    "build_module",
    "fuse_files",
    "load_module",
    "save_module",
]

_HOME = {
    "FuseError": "errors",
    "FuseOptions": "job.options",
    "FusionConfig": "fusion.config",
    "ImageTextFusion": "fusion.torch_modules",
    "MapOptions": "maps.writer",
    "Report": "report.report",
    "ModuleOptions": "fusion.options",
    "build_module": "fusion.torch_modules",
    "fuse_files": "job.run",
    "load_module": "fusion.weights",
    "save_module": "fusion.weights",
}


_RENAMED = {"Switches": "ModuleOptions"}  # names of 0.1.0 that callers may still use


def __getattr__(name: str) -> Any:
    current = _RENAMED.get(name, name)
    if current not in _HOME:
        raise AttributeError(f"module 'fusecli' has no attribute {name!r}")
    return getattr(import_module(f"fusecli.{_HOME[current]}"), current)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
