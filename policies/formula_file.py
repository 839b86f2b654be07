"""A formula as a policy's file: a function whose numbers are tunables, each with its unit."""

from __future__ import annotations

from lengthwise.policies.formula import Formula, Node, written
from lengthwise.policies.units import Unit, spelled_unit, units_of_numbers


def source(tree: Node, name: str, about: str, unit: str) -> str:
    """The function as a file's text: ``about`` is its docstring, its numbers are tunables."""
    units = units_of_numbers(tree)
    names: dict[int, str] = {}
    taken: set[str] = set(Formula(tree).features)
    for node in tree:
        if node.op == "number":
            stem = _tunable(units.get(id(node)))
            count = 1
            while (said := stem if count == 1 else f"{stem}_{count}") in taken:
                count += 1
            taken.add(said)
            names[id(node)] = said
    body = written(tree, lambda node: names[id(node)])
    reads = ", ".join(Formula(tree).features)
    lines = [f"def {name}("]
    if names:
        lines += [f"    {reads}, *,"] if reads else ["    *,"]
        for node in tree:
            if node.op == "number":
                said = spelled_unit(units.get(id(node)))
                lines.append(f"    {names[id(node)]}={node.value!r},  # {said}")
        lines.append("):")
    else:
        lines = [f"def {name}({reads}):"]
    head = ["import numpy as np", "", ""] if "np." in body else [""]
    return "\n".join(
        [f'"""{about}"""', "", *head, *lines, f'    """Lowest first, in {unit}."""',
         f"    return {body}", ""]
    )  # fmt: skip


def _tunable(unit: Unit) -> str:
    """What a number in this unit is called."""
    if unit is None or not any(unit):
        return "weight"
    said = spelled_unit(unit)
    plain = said.replace("^", "").replace("/", "_per_").replace(" ", "_").replace(".", "_")
    return f"per_{plain[6:]}" if plain.startswith("1_per_") else plain
