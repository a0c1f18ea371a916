"""The command recipes: what this package brings for `convert --recipe`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from hf_heads.attention.spec import HeadsSpec
from hf_heads.cli.options import add_command, print_json
from hf_heads.jobs.conversion.recipes import load_recipe, shipped_recipes


def add_recipes(commands: Any) -> None:
    """Add the command recipes."""
    add_command(commands, "recipes", _recipes, "list the recipes that come along, for convert --recipe NAME")


def _recipes(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    found = {name: load_recipe(path) for name, path in shipped_recipes().items()}
    rows = {
        name: {"base": recipe.base, "settings": _settings(next(reversed(recipe.specs.values()))), "paper": recipe.paper}
        for name, recipe in found.items()
    }
    if options.json:
        print_json(rows)
        return 0
    from hf_heads.cli.console import make_console, make_table  # rich takes a while to import; JSON does without

    table = make_table("recipe", "settings", "of", "paper")
    for name, row in rows.items():
        table.add_row(name, row["settings"], row["base"], row["paper"])
    make_console().print(table)
    return 0


def _settings(spec: HeadsSpec) -> str:
    """What a recipe says of its method, such as `collab rank 96`."""
    said = {item.name: getattr(spec, item.name) for item in fields(spec) if getattr(spec, item.name) != item.default}
    return " ".join([spec.method, *(f"{name.replace('_', ' ')} {value}" for name, value in said.items())])
