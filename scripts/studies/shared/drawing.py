"""Figures of the papers' experiments that are no sweeps of one line after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_heads.jobs.reporting.figures.curves import draw_curves
from hf_heads.jobs.reporting.figures.style import COLOURS, MARKERS, need_matplotlib, new_page, write_figure

Points = Sequence[tuple[float, float]]


def draw_points(path: Path, groups: Mapping[str, Points], xlabel: str, ylabel: str, title: str) -> None:
    """Points over one pair of axes, those of a group alike."""
    need_matplotlib(path)

    def made() -> Any:
        page, axes = new_page(7.5, 4.2, title)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        for place, (name, points) in enumerate(groups.items()):
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            axes.scatter(*zip(*points, strict=True), color=colour, marker=marker, label=name, s=45, alpha=0.8)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        return page

    write_figure(path, made)


def draw_by_width(path: Path, rows: Sequence[Mapping[str, Any]], score: str, ylabel: str, title: str) -> None:
    """The mean score of every kind by its width, `kind` and `width` of the rows; the first row is the baseline."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(rows[1:], key=lambda row: row["width"]):
        curves.setdefault(row["kind"], []).append((row["width"], row[score]["mean"]))
    baseline = rows[0]["kind"], rows[0][score]["mean"]
    draw_curves(path, curves, "width of all queries", ylabel, title, baseline=baseline)


def draw_by_attention(
    path: Path, rows: Sequence[Mapping[str, Any]], score: Callable[[Any], Mapping[str, Any]], ylabel: str, title: str
) -> None:
    """A point for every seed of every variant, by how many parameters its attention has; `score` is of `over_seeds`."""
    points = {row["variant"]: [(row["attention"] / 1000, value) for value in score(row)["values"]] for row in rows}
    draw_points(path, points, "parameters of attention, thousands", ylabel, f"{title}, a point for every seed")


def draw_mixing(path: Path, mixings: Sequence[Tensor], title: str) -> None:
    """How much each head takes of each shared dimension, a panel for every block.

    Args:
        path: where to.
        mixings: (heads, rank) of each block.
        title: above.
    """
    need_matplotlib(path)

    def made() -> Any:
        page, axes = new_page(7.5, 0.5 + 0.09 * sum(len(one) + 1 for one in mixings), title)
        rows, ticks = [], []
        for mixing in mixings:
            size = mixing.detach().abs()
            # Of every dimension the largest is one; dimensions that the same head uses most stand together.
            size = size / size.max(0).values.clamp_min(1e-12)
            ticks.append(sum(map(len, rows)) + len(size) / 2 - 0.5)
            rows += [size[:, size.argmax(0).argsort(stable=True)], size.new_full((1, size.shape[1]), torch.nan)]
        axes.imshow(torch.cat(rows[:-1]).numpy(), aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xlabel="shared dimension", ylabel="layer, its heads", xticks=[])
        axes.set_yticks(ticks, [str(place) for place in range(len(mixings))])
        return page

    write_figure(path, made)
