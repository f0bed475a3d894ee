"""Draw the rooms of the package and the imports between them, read from the code, as docs/images/architecture.svg.

    python docs/draw_architecture.py            # write the picture again
    python docs/draw_architecture.py --list     # print every import between rooms

A room is a folder of `medsyn/`; the modules that lie in no folder are one room together. A room may use the rooms of
its own floor and of lower ones (FLOORS). `tests/test_architecture.py` checks that, that rooms do not import each other
in circles, and that the picture is that of the code.
"""

from __future__ import annotations

import argparse
import ast
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medsyn"
PICTURE = ROOT / "docs/images/architecture.svg"

SHARED = "medsyn/*.py"
SHARED_LINE = "Files, volumes, names, layout, registry, device: what every room uses."
FLOORS: Mapping[str, tuple[str, ...]] = {
    "command line": ("cli",),
    "stages": ("report", "exhibits", "study", "viewer", "methods", "planning", "stages"),
    "domain": ("cohort", "text", "training", "evaluate", "ct", "masks", "phantom", "models", "diffusion"),
    "settings": ("config",),
    "shared": (SHARED,),
}
"""Floor -> its rooms; the highest floor first."""
RULES = "workflow/rules"
RULES_LINE = "One rule per step. A rule is a shell command that calls one verb."

Graph = Mapping[str, frozenset[str]]
"""Room -> the rooms that it imports."""


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Return dotted name -> file of every module of the package."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str, package: Path = PACKAGE) -> str:
    """Return the room of a module: its folder below the package, or the shared one."""
    first = module.split(".")[1] if "." in module else ""
    if first == "__main__":
        return "cli"
    return first if (package / first).is_dir() and first else SHARED


def imported(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """Yield module and line of a module's imports, those inside functions included, those for types only left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in known else node.module), node.lineno
        else:
            yield from imported(node, known)


def imports(package: Path = PACKAGE) -> dict[tuple[str, str], list[str]]:
    """Return (room, room that it imports) -> the places, as `medsyn/file.py:line imports module`."""
    known = modules(package)
    places: dict[tuple[str, str], list[str]] = {}
    for module, path in known.items():
        for target, line in imported(ast.parse(path.read_text(encoding="utf-8")), known):
            if target.split(".")[0] != package.name:
                continue
            pair = room_of(module, package), room_of(target, package)
            if pair[0] != pair[1]:
                place = f"{path.relative_to(package.parent)}:{line} imports {target}"
                places.setdefault(pair, []).append(place)
    return places


def graph_of(pairs: Sequence[tuple[str, str]] | Mapping[tuple[str, str], object]) -> Graph:
    """Return the graph of rooms that import each other."""
    rooms = {room for pair in pairs for room in pair}
    return {room: frozenset(target for source, target in pairs if source == room) for room in sorted(rooms)}


def cycle(graph: Graph) -> list[str]:
    """Return rooms that import each other in a circle, the first one repeated at the end; empty if there are none."""
    done: set[str] = set()

    def visit(room: str, path: list[str]) -> list[str]:
        if room in path:
            return [*path[path.index(room) :], room]
        if room in done:
            return []
        for target in sorted(graph.get(room, ())):
            found = visit(target, [*path, room])
            if found:
                return found
        done.add(room)
        return []

    return next((found for room in sorted(graph) if (found := visit(room, []))), [])


def floor_of(room: str) -> int:
    """Return the floor of a room, 0 for the highest; KeyError for a room that FLOORS does not name."""
    for number, rooms in enumerate(FLOORS.values()):
        if room in rooms:
            return number
    raise KeyError(f"room {room} is not in FLOORS of docs/draw_architecture.py, expected it on one floor; add it")


def upward(pairs: Mapping[tuple[str, str], list[str]]) -> list[str]:
    """Return the places of imports that run up the floors."""
    return [place for (room, target), places in pairs.items() if floor_of(target) < floor_of(room) for place in places]


def description(room: str) -> str:
    """Return what a room is for: the first sentence of its docstring."""
    if room == SHARED:
        return SHARED_LINE
    if room == RULES:
        return RULES_LINE
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".") + "."


# --- the picture ---

WIDTH, COLUMNS = 1180, 5
"""Of the picture in pixels, and most rooms in a row."""
GAP, MARGIN, LINE = 12, 122, 14
"""Pixels between rooms, at the left where the floors are named, and per line of text."""
LETTER = 6.6
"""Pixels of a letter, on average."""


def in_order(rooms: Sequence[str], graph: Graph) -> list[str]:
    """Return the rooms of a floor so that each stands before those that it uses."""
    left, found = [room for room in rooms if room in graph], []
    while left:
        first = next(room for room in left if not any(room in graph[other] for other in left))
        found.append(first)
        left.remove(first)
    return found


def words_in(room: str, graph: Graph, width: int) -> tuple[list[str], list[str]]:
    """Return the lines of a room's box: what it is for, and which rooms it uses besides config and the shared ones."""
    used = sorted(graph.get(room, frozenset()) - {"config", SHARED})
    letters = int((width - 18) / LETTER)
    return textwrap.wrap(description(room), letters), textwrap.wrap("uses " + ", ".join(used), letters) if used else []


def svg(graph: Graph) -> str:
    """Return the picture as SVG text: floors as bands from the highest to the lowest, rooms as boxes in them."""
    parts: list[str] = []
    top = 6
    for floor, rooms in {"workflow": (RULES,), **FLOORS}.items():
        order = list(rooms) if RULES in rooms else in_order(rooms, graph)
        table = [order[start : start + COLUMNS] for start in range(0, len(order), COLUMNS)]
        width = (WIDTH - MARGIN - 6) // len(table[0]) - GAP
        begin = top
        top += GAP
        for row in table:
            words = {room: words_in(room, graph, width) for room in row}
            height = 34 + LINE * max(len(lines) + len(uses) for lines, uses in words.values())
            for index, room in enumerate(row):
                parts += box(room, *words[room], (MARGIN + index * (width + GAP), top, width, height))
            top += height + GAP
        parts.insert(0, band(floor, begin, top - begin))
        top += 8
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
        ' font-family="Helvetica, Arial, DejaVu Sans, sans-serif">'
    )
    note = "<!-- made by docs/draw_architecture.py from the imports of the code -->"
    return "\n".join([head, note, f'<rect width="{WIDTH}" height="{top}" fill="#ffffff"/>', *parts, "</svg>", ""])


def band(floor: str, top: int, height: int) -> str:
    """Return a floor as SVG."""
    return (
        f'<rect x="6" y="{top}" width="{WIDTH - 12}" height="{height}" rx="8" fill="#e8eef2"/>'
        f'<text x="18" y="{top + 28}" font-size="14" fill="#44525f">{floor}</text>'
    )


def box(room: str, lines: Sequence[str], uses: Sequence[str], place: tuple[int, int, int, int]) -> list[str]:
    """Return a room as SVG: name, purpose, and the rooms that it uses; place: left, top, width and height in pixels."""
    left, top, width, height = place
    found = [
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="6" fill="#ffffff" stroke="#2f4858"/>',
        f'<text x="{left + 9}" y="{top + 19}" font-size="14" font-weight="bold" fill="#16242f">{escape(room)}</text>',
    ]
    for index, text in enumerate(lines):
        y = top + 35 + LINE * index
        found.append(f'<text x="{left + 9}" y="{y}" font-size="11.5" fill="#16242f">{escape(text)}</text>')
    for index, text in enumerate(uses):
        y = top + height - 7 - LINE * (len(uses) - 1 - index)
        found.append(f'<text x="{left + 9}" y="{y}" font-size="11" fill="#2a6f97">{escape(text)}</text>')
    return found


def main() -> None:
    """Read the command line; write the picture or print the imports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print every import between rooms instead")
    pairs = imports()
    if parser.parse_args().list:
        for (room, target), places in sorted(pairs.items()):
            print(f"{room} -> {target}", *places, sep="\n    ")
        return
    PICTURE.write_text(svg(graph_of(pairs)), encoding="utf-8")


if __name__ == "__main__":
    main()
