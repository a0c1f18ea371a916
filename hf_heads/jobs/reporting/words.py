"""The words of a comparison's page: numbers as text, the summary computed from them, what each figure means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hf_heads.jobs.evaluation.record import Comparison, ModelRow, Score

NONE = "\N{EN DASH}"  # stands for what was not measured
NAME_BEGINS, NAME_ENDS = "\x02", "\x03"
_MINUS = "\N{MINUS SIGN}"
_CLEARLY = 1.02  # what a mean ratio of speeds exceeds, beside 1 in every setting, where a model is called faster


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, which is a true minus where it is one: `+0.002`."""
    text = f"{value:+.{digits}f}"
    return (text if float(text) else f"{0:.{digits}f}").replace("-", _MINUS)


def quality_text(value: float | None) -> str:
    """A score or a cosine: three decimals, two above ten."""
    if value is None:
        return NONE
    return f"{value:.{_digits(value)}f}".replace("-", _MINUS)


def _digits(value: float) -> int:
    return 3 if abs(value) < 10 else 2


def big(value: float | None) -> str:
    """A count in three digits: `3.55 M`, `1.36 G`, `12,288`."""
    if value is None:
        return NONE
    for size, sign in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:#.3g}".rstrip(".") + f" {sign}"
    return f"{value:,.0f}"


def change(before: float | None, after: float | None) -> str:
    """The change from one number to another, such as `+12.5 %`."""
    if not before or after is None:
        return NONE
    return signed(100 * (after - before) / before, 1) + " %"


def interval(low: float | None, high: float | None, plus: bool = False, digits: int = 3) -> str:
    """`0.80 to 0.83`, or nothing where there is no interval."""
    if low is None or high is None:
        return ""
    ends = (signed(end, digits) if plus else f"{end:.{digits}f}".replace("-", _MINUS) for end in (low, high))
    return " to ".join(ends)


def difference_text(score: Score) -> tuple[str, str]:
    """The difference to the original and its interval; empty where there is none."""
    if score.difference is None:
        return "", ""
    digits = _digits(score.value)
    ends = interval(score.difference_low, score.difference_high, True, digits)
    return signed(score.difference, digits), ends


def _name(model: ModelRow) -> str:
    """A model's name between marks, so that a page can set it off."""
    return f"{NAME_BEGINS}{model.name}{NAME_ENDS}"


def names(models: Iterable[ModelRow]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    words = [_name(model) for model in models]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def quality_name(found: Comparison) -> str:
    """What models are compared by."""
    return found.metric.name if found.metric else "cosine to the original"


def summary(found: Comparison) -> list[str]:
    """Sentences that say what the numbers say, and when they say nothing."""
    marks = str.maketrans("", "", NAME_BEGINS + NAME_ENDS)
    return [sentence.translate(marks) for sentence in marked_summary(found)]


def marked_summary(found: Comparison) -> list[str]:
    """The sentences of `summary` with every model's name between `NAME_BEGINS` and `NAME_ENDS`."""
    parts = (_front, _helps, _best, _intervals, _healing, _control, _fastest)
    return [sentence for part in parts if (sentence := part(found))]


def _converted(found: Comparison) -> list[ModelRow]:
    return [model for model in found.models if model.role == "converted"]


def _is_smaller(found: Comparison, model: ModelRow) -> bool:
    return model.attention_parameters < found.reference.attention_parameters


def _is_faster(model: ModelRow) -> bool:
    return bool(model.ratios) and min(model.ratios) > 1 and (model.speed or 0) > _CLEARLY


def _share(found: Comparison, model: ModelRow) -> float:
    return model.attention_parameters / max(found.reference.attention_parameters, 1)


def _front(found: Comparison) -> str:
    measured = [model for model in _converted(found) if found.quality(model) is not None]
    if not measured:
        return "Neither a task score nor a cosine was measured, so nothing can be said of what was lost."
    front = [found.models[number] for number in found.front() if found.models[number].role == "converted"]
    axes = f"the Pareto front of attention parameters and {quality_name(found)}"
    if not front:
        return f"No converted model is on {axes}: for each there is another that is no larger and no worse."
    if len(measured) == 1:
        return f"{_name(front[0])} is on {axes}."
    on = f"{names(front)} {'is' if len(front) == 1 else 'are'} on {axes}"
    if len(front) == len(measured):
        all_ = "Both" if len(measured) == 2 else f"All {len(measured)}"
        return f"{all_} converted models are on {axes}: for none is there another that is no larger and no worse."
    rest = len(measured) - len(front)
    each = "the other one" if rest == 1 else f"each of the other {rest}"
    return f"{on}; for {each} there is a model that is no larger and no worse."


def _helps(found: Comparison) -> str:
    cache = found.reference.cache_per_token
    for model in _converted(found):
        less = cache is not None and model.cache_per_token is not None and model.cache_per_token < cache
        if _is_smaller(found, model) or less or _is_faster(model):
            return ""
    return "None helps: no converted model has fewer attention parameters, caches less or is clearly faster."


def _best(found: Comparison) -> str:
    smaller = [model for model in _converted(found) if _is_smaller(found, model) and found.quality(model) is not None]
    named: list[ModelRow] = []
    parts = []
    for limit in (1.0, 0.75, 0.5, 0.25):
        within = [model for model in smaller if round(_share(found, model), 2) <= limit]
        if not within:
            break
        best = max(within, key=lambda model: (found.sign * (found.quality(model) or 0.0), -_share(found, model)))
        if best in named:
            continue
        named.append(best)
        value = quality_text(found.quality(best))
        if limit < 1:
            parts.append(f"of those at {100 * limit:.0f} % or less {_name(best)} ({value})")
            continue
        whole = found.quality(found.reference) if found.metric else None
        against = "" if whole is None else f" against {quality_text(whole)}"
        parts.append(
            f"Best of the smaller models is {_name(best)} at {100 * _share(found, best):.0f} % of the attention "
            f"parameters ({quality_name(found)} {value}{against})"
        )
    return "; ".join(parts) + "." if parts else ""


def _intervals(found: Comparison) -> str:
    scored = [(model, model.score) for model in _converted(found) if model.score and model.score.clear is not None]
    if not scored:
        return ""
    worse = [model for model, score in scored if score.clear and found.sign * (score.difference or 0) < 0]
    better = [model for model, score in scored if score.clear and found.sign * (score.difference or 0) > 0]
    open_ = [model for model, score in scored if not score.clear]
    if len(open_) == len(scored):
        each = {1: "the converted model", 2: "both converted models"}.get(
            len(scored), f"all {len(scored)} converted models"
        )
        return f"The interval of the difference includes zero for {each}: no loss is shown, and no gain."
    parts = []
    if worse:
        who = names(worse) if len(worse) <= 3 else f"{len(worse)} of {len(scored)} converted models"
        if len(worse) == len(scored) > 1:
            who = "Both converted models" if len(worse) == 2 else f"All {len(worse)} converted models"
        parts.append(f"{who} {'is' if len(worse) == 1 else 'are'} measurably worse than the original")
    if better:
        parts.append(f"{names(better)} {'is' if len(better) == 1 else 'are'} measurably better than the original")
    if open_:
        parts.append(f"of {names(open_)} the interval of the difference includes zero, so that no loss is shown")
    return "; ".join(parts) + "."


def _healing(found: Comparison) -> str:
    pairs = [(model, found.before_healing(model)) for model in _converted(found)]
    known = [
        (after, found.models[before])
        for after, before in pairs
        if before is not None and None not in (found.quality(after), found.quality(found.models[before]))
    ]
    if not known:
        return ""
    texts = [
        f"of {_name(before)} from {quality_text(found.quality(before))} to {quality_text(found.quality(after))}"
        f"{_minutes(after)}"
        for after, before in known
    ]
    return f"Healing took the {quality_name(found)} " + "; ".join(texts) + "."


def _minutes(model: ModelRow) -> str:
    seconds = (model.healed or {}).get("seconds")
    return f" in {duration(seconds)}" if isinstance(seconds, (int, float)) else ""


def duration(seconds: float) -> str:
    """`45 s`, `10 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _control(found: Comparison) -> str:
    floors = [quality for model in found.models if model.role == "control" and (quality := found.quality(model))]
    qualities = [(model, found.quality(model)) for model in _converted(found)]
    if not floors or all(quality is None for _, quality in qualities):
        return ""
    floor = max(floors, key=lambda value: found.sign * value)
    below = [model for model, value in qualities if value is not None and found.sign * (value - floor) <= 0]
    if not below:
        return f"All are better than the control, which has {quality_text(floor)}."
    verb = "does" if len(below) == 1 else "do"
    return f"{names(below)} {verb} no better than the control, which has {quality_text(floor)}."


def _fastest(found: Comparison) -> str:
    timed = [(model.speed, model) for model in _converted(found) if model.speed is not None]
    if not timed:
        return ""
    speed, model = max(timed, key=lambda pair: pair[0])
    ratios = model.ratios
    several = f", a mean over {len(ratios)} settings from {min(ratios):.2f} to {max(ratios):.2f}"
    doing = " of generating" if model.generation else ""
    has = f"{speed:.2f} times the original's speed{doing}{several if len(ratios) > 1 else ''}"
    if not any(_is_faster(one) for _, one in timed):
        return f"None is clearly faster than the original; the fastest, {_name(model)}, has {has}."
    return f"Fastest is {_name(model)}: {has}."


DRIFTS = {
    "cosine": (
        "cosine",
        "mean cosine between the outputs of a model and of the original on the same inputs: of texts' mean hidden "
        "states where the model ends in hidden states, else of logits. 1 is no change.",
    ),
    "max_difference": ("largest difference", "largest absolute difference of any output number."),
    "kl": ("KL divergence", "mean Kullback-Leibler divergence from the original's predictions, in nats."),
    "agreement": ("agreement", "share of predictions whose first choice is the original's."),
    "neighbours": (
        "neighbours",
        "mean share of an example's ten nearest neighbours by embedding that are those of the original.",
    ),
    "attention_distance": (
        "attention distance",
        "total variation distance between the two models' attention maps, each a mean over heads: 0 is equal.",
    ),
}


def definitions(found: Sequence[Comparison], rule: str | None) -> list[tuple[str, str]]:
    """Terms and what they mean, of all that the comparisons hold."""
    models = [model for one in found for model in one.models]
    metrics = {one.metric.name: one.metric.about for one in found if one.metric}
    drifts = {name for model in models for name in model.drift or ()}
    known = [
        ("attention parameters", "weights and biases of all attention blocks, output projections included.", True),
        ("cache", "numbers kept for each token when a decoder generates with a key-value cache.", True),
        (
            "multiply-adds",
            "of the matrix products of one forward pass of one example, counted and not timed.",
            any(model.multiply_adds for model in models),
        ),
        (
            "speed",
            "the original's time over the model's, medians; above 1 the model is faster. In the table the geometric "
            "mean over all batches and lengths. A few percent of difference are noise.",
            any(model.timings for model in models),
        ),
        (
            "peak memory",
            "the most that a forward pass holds above what was held before, its output included.",
            any(model.peak_memory for model in models),
        ),
        *((word, text, name in drifts) for name, (word, text) in DRIFTS.items()),
        *((name, f"{about.rstrip('.')}.", True) for name, about in metrics.items() if about),
        (
            "interval",
            "95 % bootstrap interval over examples; that of a difference draws the same examples for both models.",
            any(model.score and model.score.low is not None for model in models),
        ),
        (
            "Pareto front",
            "the models for which no other is at most as large and at least as good, and different in one of the two.",
            True,
        ),
        (
            "error of a block",
            "squared difference between what the block adds to the residual stream in the model and in the original, "
            "as a share of the original's squares. Errors that earlier blocks pass on are in it.",
            any(block.drift is not None for model in models for block in model.blocks),
        ),
        (
            "control",
            "the original with uniform attention, which needs no queries and no keys: what is left where "
            "nothing is looked for.",
            any(model.role == "control" for model in models),
        ),
        ("healing", "training after the conversion, towards the original's outputs.", any(m.healed for m in models)),
        ("importance of a head", f"{rule}.", bool(rule)),
    ]
    return [(term, text) for term, text, used in known if used]
