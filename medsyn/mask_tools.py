"""Mask tools as data: what each tool finds, what it needs, and how it is opened.

A tool is a `MaskTool` under a name in MASK_TOOLS. The package's own stand in `medsyn.masks.own_tools`. Another package
adds a tool as an entry point of the group `medsyn.mask_tools`; a user's module, named under `plugins` in the
configuration, calls `MASK_TOOLS.register(name, tool)`. What the configuration accepts, the workflow's requests for
memory, time and GPUs, and the list of weight files follow from it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from medsyn.errors import InputError
from medsyn.registry import MASK_TOOLS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medsyn.volume import Volume
    from medsyn.weight_files import WeightFile

ANATOMY = ("lobes", "airway", "heart", "effusion")
"""Structures that `medsyn measure` asks of the tool that `evaluation.anatomy_tool` names."""


class Settings(Protocol):
    """What a tool may read of the section `masks` of the configuration."""

    @property
    def weights_dir(self) -> str:
        """Return the folder of the weight files."""

    @property
    def lungmask_model(self) -> str:
        """Return lungmask's model, or two joined by an underscore."""


class Segmenter(Protocol):
    """An opened tool. It is held over a shard, so that it loads its networks once."""

    @property
    def version(self) -> str:
        """Return the version of the code that finds the masks; work of another version is not reused."""

    @property
    def weights_hash(self) -> str | None:
        """Return the SHA-256 of the weights (`medsyn.weight_files.hash_weights`), None without weights."""

    def segment(self, volume: Volume, structures: Sequence[str]) -> Mapping[str, NDArray[np.uint8]]:
        """Return the masks of `structures` on the grid of `volume`.

        volume: CT in HU, array (D, H, W) in model orientation (`medsyn.orientation`), spacing in mm. Masks are (D, H,
        W): lobes 0 to 5 in the order of `medsyn.volume.LOBE_NAMES`, every other structure 0 and 1. A volume that cannot
        be segmented is an InputError, and so is missing anatomy (NothingFoundError) that the tool cannot do without.
        """


Opener = Callable[[Settings, Sequence[str]], Segmenter]
"""Settings and the structures that will be asked for -> an opened tool; InputError without weights."""


def imported(source: str) -> Opener:
    """Return an opener that imports "module:attribute" when it is called, and calls that."""

    def opener(config: Settings, structures: Sequence[str]) -> Segmenter:
        module, _, attribute = source.partition(":")
        tool: Segmenter = getattr(importlib.import_module(module), attribute)(config, structures)
        return tool

    return opener


def _same(config: Settings, structures: Sequence[str]) -> Sequence[str]:
    return structures


@dataclass(frozen=True)
class MaskTool:
    """What a tool finds, what it needs, and how it is opened.

    open: see Opener. structures: what it finds, out of lobes, airway, vessels, heart and effusion. uses_network: the
    workflow requests a GPU, and the memory and time of a network. packages: Python packages that it imports.
    may_find_nothing: an empty airway or vessel mask is a result and not a failure. measures_itself: `medsyn measure`
    has the same method without masks, so the tool serves as evaluation.anatomy_tool whatever its structures are.
    weight_parts: settings and structures -> the parts of its weight files that are needed (`WeightFile.parts`).
    weight_files: rows for `medsyn weights`, beside those of medsyn/weight_files.yaml.
    """

    open: Opener
    structures: tuple[str, ...]
    uses_network: bool = False
    packages: tuple[str, ...] = ()
    may_find_nothing: bool = False
    measures_itself: bool = False
    weight_parts: Callable[[Settings, Sequence[str]], Sequence[str]] = _same
    weight_files: tuple[WeightFile, ...] = ()

    @property
    def finds_anatomy(self) -> bool:
        """Return whether the tool can be evaluation.anatomy_tool."""
        return self.measures_itself or set(ANATOMY) <= set(self.structures)


def tools_for(structure: str, names: Iterable[str] | None = None) -> list[str]:
    """Return the names of the tools (out of `names`, by default of all) that find `structure`.

    structure: lobes, airway, vessels; or anatomy, for the tools that can be evaluation.anatomy_tool.
    """
    return [name for name in (MASK_TOOLS.names() if names is None else names) if _finds(MASK_TOOLS[name], structure)]


def tool_fault(name: str, structure: str) -> str | None:
    """Return why `name` is not a mask tool that finds `structure` (see `tools_for`), or None."""
    if name in MASK_TOOLS and _finds(MASK_TOOLS[name], structure):
        return None
    missing = f"all of {', '.join(ANATOMY)}" if structure == "anatomy" else structure
    fault = f"does not find {missing}" if name in MASK_TOOLS else "is not a known mask tool"
    known = ", ".join(tools_for(structure))
    return f"'{name}' {fault}; expected one of {known}, or one that a module under plugins registers"


def use_network(*names: str) -> bool:
    """Return whether any of these tools runs a network."""
    return any(MASK_TOOLS[name].uses_network for name in names)


def open_tool(name: str, config: Settings, structures: Sequence[str]) -> Segmenter:
    """Open one tool for `structures`; without its package or its weights, InputError."""
    tool = MASK_TOOLS[name]
    for package in tool.packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"masks: the tool '{name}' needs the Python package {package}, which is not installed here; install it"
                " (`pip install --no-deps -r envs/requirements.lock` has those of medsyn's own tools), or choose"
                " another tool such as 'classical'"
            )
    return tool.open(config, structures)


def _finds(tool: MaskTool, structure: str) -> bool:
    return tool.finds_anatomy if structure == "anatomy" else structure in tool.structures
