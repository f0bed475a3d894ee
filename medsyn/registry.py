"""Look up methods, exhibits, mask tools and solvers by name, from the package, other packages and users' modules.

A thing of the package is named by `module:attribute` and imported when it is asked for, so that listing names costs
nothing. An installed package offers things as entry points of the registry's group. A user's module, named under
`plugins` in the configuration, calls `register`. The registries themselves stand at the end of this module, so that the
configuration can check names without importing what they stand for.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Generic, TypeVar

from medsyn.errors import InputError

if TYPE_CHECKING:
    from medsyn.diffusion.base import Solver
    from medsyn.exhibits.base import Exhibit
    from medsyn.mask_tools import MaskTool
    from medsyn.methods.base import Kind

T = TypeVar("T")
_importing: list[str] = []
"""The plugin that is being imported, last; what it registers is remembered as its own."""
_plugin_files: dict[str, Path] = {}
"""Plugin -> the file that it was imported from."""


class Registry(Generic[T]):
    """Things of one kind by name, in the order in which they were added: first the package's own."""

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        """Make a registry.

        kind: what one of its things is called in messages, such as "mask tool"; group: its entry points' group;
        builtin: name -> "module:attribute" of the package's own.
        """
        self.kind, self.group, self.builtin = kind, group, tuple(builtin)
        self._sources: dict[str, str] = dict(builtin)
        self._things: dict[str, T] = {}
        self._plugins: dict[str, str] = {}
        self._searched = False

    def register(self, name: str, thing: T) -> T:
        """Add a thing under a new name and return it; another thing under a name that exists raises InputError."""
        if name in self._things or name in self._all_sources():
            raise InputError(f"{self.kind} '{name}' exists already, expected a new name; rename it in the plugin")
        self._things[name] = thing
        if _importing:
            self._plugins[name] = _importing[-1]
        return thing

    def provider(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a function or class under `name`."""
        return lambda thing: self.register(name, thing)

    def names(self) -> tuple[str, ...]:
        """Return every known name, without importing what it stands for."""
        return tuple(dict.fromkeys([*self._all_sources(), *self._things]))

    def unknown(self, name: str) -> str:
        """Return the message for a name that is not known."""
        return (
            f"'{name}' is not a known {self.kind}; expected one of {', '.join(self.names())}, or one that a module"
            " under plugins registers"
        )

    def plugin_of(self, name: str) -> str | None:
        """Return the entry of `plugins` whose import registered `name`; None for names from elsewhere."""
        return self._plugins.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __getitem__(self, name: str) -> T:
        """Return the thing called `name`, imported if need be.

        Raises InputError for a name that is unknown, and for one whose module cannot be imported.
        """
        if name not in self._things:
            source = self._all_sources().get(name)
            if source is None:
                raise InputError(self.unknown(name))
            self._things[name] = _load(f"{self.kind} '{name}'", source)
        return self._things[name]

    def _all_sources(self) -> Mapping[str, str]:
        """Return name -> "module:attribute" of the package's own things and of installed packages' entry points."""
        if not self._searched:
            from importlib.metadata import entry_points  # slow to import

            self._searched = True
            for found in entry_points(group=self.group):
                self._sources.setdefault(found.name, found.value)
        return self._sources


def load_plugins(modules: Iterable[str]) -> None:
    """Import the modules that a configuration names: dotted names, or paths that end with .py; each only once.

    A dotted name is searched in the working directory as well. Raises InputError for one that cannot be imported.
    """
    for name in modules:
        _importing.append(name)
        try:
            module = _import_file(Path(name)) if name.endswith(".py") else _import_module(name)
            if module.__file__ is not None:
                _plugin_files[name] = Path(module.__file__).resolve()
        except InputError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"plugin '{name}' cannot be imported ({type(error).__name__}: {reason}); expected a module of the"
                " Python environment or of the working directory, or the path of a .py file"
            ) from error
        finally:
            _importing.pop()


def plugin_files() -> list[Path]:
    """Return the files of all plugins that this process has imported, sorted by the plugins' names."""
    return [path for _, path in sorted(_plugin_files.items())]


def _import_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    """Import a file under a name of its own, which pickling and repeated calls find again."""
    name = f"medsyn_plugin_{path.resolve()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _load(what: str, source: str) -> T:  # type: ignore[type-var]
    module, _, attribute = source.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{what}: {source} cannot be imported ({reason}); repair or remove the package") from error


# --- what can be added ---

MASK_TOOLS: Registry[MaskTool] = Registry(
    "mask tool",
    "medsyn.mask_tools",
    {
        name: f"medsyn.masks.own_tools:{name.upper()}"
        for name in ("classical", "lungmask", "totalsegmentator", "naviairway")
    },
)
"""Mask tools (`medsyn.mask_tools`): `masks.lobes`, `masks.airway`, `masks.vessels`, `evaluation.anatomy_tool`."""

SOLVERS: Registry[Solver] = Registry(
    "solver",
    "medsyn.solvers",
    {name: f"medsyn.diffusion.solvers:{name.upper()}" for name in ("ddim", "dpmpp_2m", "unipc")},
)
"""Samplers (`medsyn.diffusion.base`): `sampling.solver`."""

METHODS: Registry[Kind] = Registry(
    "kind of method",
    "medsyn.methods",
    {
        "medsyn": "medsyn.methods.medsyn:KIND",
        "distilled": "medsyn.methods.distilled:KIND",
        "external": "medsyn.methods.external:KIND",
        "wgan": "medsyn.methods.gans:WGAN",
        "alpha_gan": "medsyn.methods.gans:ALPHA_GAN",
        "hagan": "medsyn.methods.hagan:HAGAN",
        "medical_diffusion": "medsyn.methods.medical_diffusion:KIND",
    },
)
"""Kinds of methods (`medsyn.methods.base`): `kind` of an entry under `methods`."""

_MODULES_OF_EXHIBITS: Mapping[str, tuple[str, str]] = {
    "table1": ("table", "table1"),
    "table2": ("table", "finding_tables"),
    "table3": ("table", "finding_tables"),
    "table4": ("table", "finding_tables"),
    "table5": ("table", "table5"),
    "table6": ("table", "table6"),
    "table7": ("table", "table7"),
    "table8": ("table", "table8"),
    "recognition": ("table", "reader_study"),
    "ranking": ("table", "reader_study"),
    "diagnostics": ("table", "diagnostics"),
    "memorisation": ("table", "memorisation"),
    "figure3": ("figure", "figure3"),
    "figure4": ("figure", "figure4"),
    "figure5": ("figure", "figure5"),
    "figure6": ("figure", "figure6"),
    "faithfulness": ("figure", "faithfulness"),
    "figure7": ("figure", "reader_figures"),
    "figure8": ("figure", "reader_figures"),
    "diagnostic_panels": ("figure", "diagnostic_panels"),
    "memorisation_pairs": ("figure", "memorisation_pairs"),
    "hero": ("figure", "hero"),
}
"""Exhibit -> its kind and the module that holds it."""
EXHIBITS: Registry[Exhibit] = Registry(
    "exhibit",
    "medsyn.exhibits",
    {name: f"medsyn.exhibits.{module}:{name.upper()}" for name, (_, module) in _MODULES_OF_EXHIBITS.items()},
)
"""Tables and figures (`medsyn.exhibits.base`), in the order of the report."""


def builtin_exhibits(kind: str) -> list[str]:
    """Return the names of this package's exhibits of a kind, `table` or `figure`, without importing them."""
    return [name for name, (found, _) in _MODULES_OF_EXHIBITS.items() if found == kind]
