"""The page made from comparisons: what it says, that it stands alone, and how it looks in a browser."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_heads.jobs.evaluation.record import (
    pareto_front,
    read_comparison,
)
from hf_heads.jobs.reporting.page import write_report
from hf_heads.jobs.reporting.words import NONE, big, change, duration, interval, quality_text, signed, summary
from tests.support.browser import CHROMIUM, Browser
from tests.support.cli import Run, check_refused, leftovers
from tests.support.records import comparison, healed, model, rich, score, scores, unmeasured

FIGURES = ["healing.png", "importance.png", "layers.png", "quality.png", "speed.png"]
RESULTS = Path(__file__).parents[3] / "scripts" / "results"
VOID = {"meta", "link", "img", "br"}


def save(folder: Path, name: str, record: object) -> Path:
    path = folder / name
    path.write_text(json.dumps(record))
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on two comparisons with importance, the second of which holds little and has names like markup."""
    folder = tmp_path_factory.mktemp("report")
    paths = [save(folder, "rich.json", rich()), save(folder, "unmeasured.json", unmeasured())]
    write_report(paths, folder / "out", importance=save(folder, "scores.json", scores()))
    return folder / "out"


class Page(HTMLParser):
    """What a page holds; refuses tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page((written / "index.html").read_text(encoding="utf-8"))


# The page.


def test_the_page_needs_nothing_else(written: Path, page: Page):
    source = (written / "index.html").read_text(encoding="utf-8")
    assert "http:" not in source and "https:" not in source and "@import" not in source and "url(" not in source
    assert not page.all("script") and not page.all("iframe")
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
        assert not any(name.startswith("on") or name == "style" for name in attributes)


def test_the_page_is_complete(page: Page):
    assert page.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in page.all("meta")
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in page.all("a")} <= {f"#{name}" for name in ids}
    assert len(page.all("figure")) == len(page.all("figcaption")) == len(page.all("img")) == 6
    assert all(len(image["alt"] or "") > 40 for image in page.all("img"))
    assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))


def test_a_point_leads_to_its_model_and_the_command_that_made_it(written: Path, page: Page):
    source = (written / "index.html").read_text(encoding="utf-8")
    spots = re.findall(
        r'<a href="#(c1-m\d+)" aria-label="([^"]+)"><title>\2</title><circle cx="(\d+)" cy="(\d+)"', source
    )
    assert len(spots) == 12
    (width, height), *_ = re.findall(r'<svg viewBox="0 0 (\d+) (\d+)"', source)
    with Image.open(written / "quality-1.png") as image:
        drawn = image.convert("L")
    assert drawn.size == (int(width), int(height))
    for anchor, name, x, y in spots:
        around = drawn.crop((int(x) - 12, int(y) - 12, int(x) + 12, int(y) + 12))
        assert around.getextrema()[0] < 200, name  # some are hollow
        details = source.partition(f'id="{anchor}"')[2].partition("</details>")[0]
        assert ("<code>hf-heads convert all-MiniLM-L6-v2 --to " in details) == (name != "all-MiniLM-L6-v2"), name


def test_names_that_look_like_markup_are_text(written: Path, page: Page):
    source = (written / "index.html").read_text(encoding="utf-8")
    assert "<script" not in source and "&lt;script&gt;alert(1)&lt;/script&gt;" in source
    assert "<script>alert(1)</script>" in page.text and '<b>tiny</b> & "co"' in page.text


def test_the_page_says_what_was_compared_and_how_it_was_made(page: Page):
    for words in (
        "all-MiniLM-L6-v2 and 11 models made from it",
        "outputs compared on 256 pairs of stsb-test.tsv",
        "spearman over 1,379 examples",
        "2026-03-01",
        "torch 2.9.1",
        "made up, 2 cores",
        "rank correlation of the cosine of two embeddings with people's similarity scores.",
        "By gauss-newton: how far the model's output moves without the head",
        "hf-heads report",
        "hf-heads compare all-MiniLM-L6-v2 out/collab-192",
    ):
        assert words in page.text, words


def rows(page: str) -> dict[str, list[str]]:
    """The cells of the main table by the name of the model."""
    table = page.split("<tbody>")[1].split("</tbody>")[0]
    cells = [[Page(cell).text for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in table.split("</tr>")[:-1]]
    return {re.sub(r"^\d+\. ", "", first).split(" ")[0]: rest for first, *rest in cells}


def test_the_main_table(written: Path):
    found = rows((written / "index.html").read_text(encoding="utf-8"))
    assert len(found) == 12
    settings, parameters, changed, cache, adds, speed, cosine, value, difference = found["collab-96"]
    assert (settings, parameters, changed, cache) == (
        "collab rank 96, 12 heads",
        "2.27 M",
        "\N{MINUS SIGN}36.0 %",
        "2,952",
    )
    assert (adds, cosine) == ("5.53 G", "0.931")
    record = next(one for one in rich()["models"] if one["name"] == "collab-96")
    ratios = [row["ratio"] for row in record["latency"]]
    assert speed == f"{(ratios[0] * ratios[1] * ratios[2]) ** (1 / 3):.2f}"
    assert (value, difference) == ("0.796 0.780 to 0.811", "-0.024 -0.033 to -0.015".replace("-", "\N{MINUS SIGN}"))
    assert found["all-MiniLM-L6-v2"][1:3] == ["3.55 M", ""]


def test_equal_input_gives_equal_bytes(written: Path, tmp_path: Path):
    paths = [written.parent / name for name in ("rich.json", "unmeasured.json")]
    again = tmp_path / written.name  # the footer names the folder
    write_report(paths, again, importance=written.parent / "scores.json")
    assert leftovers(again) == leftovers(written)
    for name in leftovers(again):
        mine, theirs = ((folder / name).read_bytes() for folder in (again, written))
        assert mine == theirs, name


def test_figures_fit_a_telephone(written: Path):
    first = ["healing-1.png", "importance.png", "index.html", "layers-1.png", "quality-1.png"]
    assert leftovers(written) == [*first, "quality-2.png", "speed-1.png"]
    for path in written.glob("*.png"):
        with Image.open(path) as image:
            assert image.width == 968  # 4.4 inches at 220 dots: text of 10 points is 11 pixels in 358
            assert 200 < image.height < 1400


# The words.


def read(tmp_path: Path, record: dict[str, Any]) -> list[str]:
    return summary(read_comparison(save(tmp_path, "one.json", record)))


def test_the_summary_is_computed_from_the_numbers(tmp_path: Path):
    front, least, intervals, healing, control, fastest = read(tmp_path, rich())
    assert front == (
        "pruned-50-healed, collab-48-healed, low-rank-16 and collab-192 are on the Pareto front of attention "
        "parameters and spearman; for each of the other 6 there is a model that is no larger and no worse."
    )
    assert least == (
        "Best of the smaller models is collab-192 at 78 % of the attention parameters (spearman 0.816 against 0.820); "
        "of those at 75 % or less low-rank-16 (0.811); of those at 50 % or less pruned-50-healed (0.798)."
    )
    assert intervals == (
        "9 of 10 converted models are measurably worse than the original; of collab-192 the interval of the "
        "difference includes zero, so that no loss is shown."
    )
    assert healing == (
        "Healing took the spearman of collab-48 from 0.758 to 0.805 in 10 min; of pruned-50 from 0.750 to 0.798 in "
        "9 min."
    )
    assert control == "All are better than the control, which has 0.579."
    assert fastest.startswith("Fastest is pruned-50-healed: 1.10 times the original's speed, a mean over 3 settings")


def test_the_summary_says_when_nothing_helps(tmp_path: Path):
    same = model("same", "collab", 1, 0.9, score=score(0.7))
    same["latency"] = [{**row, "ratio": 0.9} for row in same["latency"]]
    said = read(tmp_path, comparison([model("base", None, 1, 1), same]))
    assert said == [
        "No converted model is on the Pareto front of attention parameters and spearman: for each there is another "
        "that is no larger and no worse.",
        "None helps: no converted model has fewer attention parameters, caches less or is clearly faster.",
        "same is measurably worse than the original.",
        "None is clearly faster than the original; the fastest, same, has 0.90 times the original's speed, a mean over "
        "3 settings from 0.90 to 0.90.",
    ]


def test_the_summary_says_when_intervals_include_zero(tmp_path: Path):
    models = [model("base", None, 1, 1), model("a", "collab", 0.8, 0.999), model("b", "mhe", 0.7, 0.998)]
    assert (
        "The interval of the difference includes zero for both converted models: no loss is shown, and no gain."
        in read(tmp_path, comparison(models))
    )


def test_lower_scores_can_be_better(tmp_path: Path):
    metric = {"name": "perplexity", "about": "of words", "higher_is_better": False, "examples": 9}

    def scored(value: float) -> dict[str, float]:
        return {**score(0.8), "value": value, "difference": value - 10, "difference_low": 1, "difference_high": 99}

    models = [
        model("base", None, 1, 1, score={**scored(10), "difference_low": 0}),
        model("good", "collab", 0.6, 0.9, score=scored(11)),
        model("bad", "pruned", 0.6, 0.8, score=scored(30)),
        model("uniform", None, 0.5, 0.1, role="control", score=scored(20)),
    ]
    said = read(tmp_path, comparison(models, metric=metric))
    assert said[0].startswith("good is on the Pareto front of attention parameters and perplexity; for the other one")
    assert said[1].startswith(
        "Best of the smaller models is good at 60 % of the attention parameters (perplexity 11.00"
    )
    assert said[2] == "Both converted models are measurably worse than the original."
    assert said[3] == "bad does no better than the control, which has 20.00."


def test_without_any_measure_of_quality_nothing_is_claimed(tmp_path: Path):
    record = unmeasured()
    del record["models"][1]["drift"]
    assert read(tmp_path, record)[0].startswith("Neither a task score nor a cosine was measured")
    written = write_report([tmp_path / "one.json"], tmp_path / "out")
    assert written.figures == ()


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (signed(-0.0004), "0.000"),
        (signed(-0.012), "\N{MINUS SIGN}0.012"),
        (signed(2, 0), "+2"),
        (quality_text(82.25), "82.25"),
        (quality_text(None), NONE),
        (big(999_949), "999,949"),
        (big(3_548_160), "3.55 M"),
        (big(120_000_000), "120 M"),
        (big(1.36e9), "1.36 G"),
        (change(100, 88), "\N{MINUS SIGN}12.0 %"),
        (change(0, 88), NONE),
        (interval(0.8, None), ""),
        (interval(-0.01, 0.02, plus=True), "\N{MINUS SIGN}0.010 to +0.020"),
        (duration(45), "45 s"),
        (duration(600), "10 min"),
        (duration(9000), "2.5 h"),
    ],
)
def test_numbers_as_text(made: str, text: str):
    assert made == text


def test_the_front_is_that_of_brute_force():
    dice = random.Random(0)
    for _ in range(300):
        points = [(float(dice.randint(0, 6)), float(dice.randint(0, 6))) for _ in range(dice.randint(0, 9))]
        wanted = [
            place
            for place, (size, quality) in enumerate(points)
            if not any(x <= size and y >= quality and (x, y) != (size, quality) for x, y in points)
        ]
        assert sorted(pareto_front(points)) == wanted


def test_a_healed_model_is_linked_to_its_beginning_only_where_that_is_plain(tmp_path: Path):
    record = rich()
    found = read_comparison(save(tmp_path, "rich.json", record))
    names = [model.name for model in found.models]
    began = {model.name: found.before_healing(model) for model in found.models if model.healed}
    assert began == {"collab-48-healed": names.index("collab-48"), "pruned-50-healed": names.index("pruned-50")}
    twin = copy.deepcopy(record["models"][names.index("collab-48")])
    record["models"].append({**twin, "name": "collab-48-other"})
    found = read_comparison(save(tmp_path, "rich.json", record))
    assert found.before_healing(found.models[names.index("collab-48-healed")]) is None


# The command, and what it refuses.


def test_the_command(run: Run, tmp_path: Path):
    record, values = save(tmp_path, "c.json", rich()), save(tmp_path, "s.json", scores())
    output = tmp_path / "out"
    made = run("report", record, "--importance", values, "--output", output, "--title", "Heads & tails", "--json")
    assert made.code == 0, made.err
    assert made.json["page"] == str(output / "index.html")
    assert [Path(path).name for path in made.json["figures"]] == FIGURES
    assert "<h1>Heads &amp; tails</h1>" in (output / "index.html").read_text(encoding="utf-8")
    check_refused(run("report", record, "--output", output), "exists", "--overwrite")
    shown = run("report", record, "--output", output, "--overwrite")
    assert shown.code == 0 and "Pareto front" in shown.out and "index.html" in shown.out
    assert leftovers(output) == sorted(["index.html", *(name for name in FIGURES if name != "importance.png")])


def test_curves_of_one_point_are_no_curves(tmp_path: Path):
    once = healed(60, 0.8, 0.9)
    once["curve"] = once["curve"][:1]
    models = [model("base", None, 1, 1), model("a", "collab", 0.8, 0.9, healed=once)]
    written = write_report([save(tmp_path, "c.json", comparison(models))], tmp_path / "out")
    assert [path.name for path in written.figures] == ["layers.png", "quality.png", "speed.png"]


# The browser.


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed")
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


WIDER = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll') &&
    one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_overflow_or_complaint(tab: Browser, written: Path, width: int):
    tab.open(written / "index.html", width)
    for folded in (True, False):
        if not folded:
            tab.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert tab.ask("innerWidth") == width
        assert tab.ask("document.documentElement.scrollWidth") <= width
        assert tab.ask(WIDER) == []
    images = tab.ask("[...document.images].map(one => [one.complete, one.naturalWidth, one.clientWidth])")
    assert len(images) == 6
    for complete, natural, shown in images:
        assert complete and natural == 968 and 340 <= shown <= 560
    lefts = set(tab.ask("[...document.querySelectorAll('figure')].map(one => one.getBoundingClientRect().left)"))
    assert len(lefts) == (2 if width == 1280 else 1)  # columns
    assert tab.complaints() == []
    assert all(url.startswith(("file:", "data:")) for url in tab.requests())


def test_on_a_telephone_tables_scroll_and_the_names_stay(tab: Browser, written: Path):
    tab.open(written / "index.html", 390)
    box = "document.querySelector('.scroll')"
    assert tab.ask(f"{box}.scrollWidth > {box}.clientWidth")
    tab.ask(f"{box}.scrollLeft = 300")
    left, position = tab.ask(
        f"[{box}.querySelector('tbody th').getBoundingClientRect().left, {box}.getBoundingClientRect().left]"
    )
    assert abs(left - position) < 1
    assert tab.ask("getComputedStyle(document.querySelector('td.number')).textAlign") == "right"
