"""Whether two text columns are two segments of one sequence, by what the checkpoint's class takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.errors import HeadsError
from hf_heads.modeling.auto_classes import auto_classes

# The classes whose inputs are, as a rule, two texts in one sequence.
_PAIRED = (
    "AutoModelForSequenceClassification",
    "AutoModelForNextSentencePrediction",
    "AutoModelForMultipleChoice",
    "AutoModelForQuestionAnswering",
)


@dataclass(frozen=True)
class Pairing:
    """How the text columns of data are read for a model.

    Attributes:
        asked: what somebody said; None where nobody did.
        name: of the model's class.
        usual: whether models of this class take pairs.
    """

    asked: bool | None
    name: str
    usual: bool

    def of(self, source: str, columns: Sequence[str]) -> bool:
        """Whether these columns are pairs.

        Raises:
            HeadsError: they should be, and are not two.
        """
        count = len(columns)
        if count == 2:
            return self.usual if self.asked is None else self.asked
        if self.asked or (self.asked is None and self.usual and count > 2):
            columns_of = f"'{source}' has {count} text column{'s' if count > 1 else ''}"
            raise HeadsError(
                f"{columns_of}; name one, or two for pairs, with --columns a,b; or read single texts with --no-pairs"
            )
        return False

    def words(self, pairs: bool, columns: int) -> str:
        """How the texts were read, and whose word that is; empty where there was nothing to choose."""
        if columns < 2:
            return ""
        what = "pairs" if pairs else "single texts"
        if self.asked is not None:
            return f"{what}, as asked"
        if self.usual:
            return f"{what}, as {self.name} takes them"
        return f"{what}, a guess: {self.name} does not say; --pairs reads pairs"


def pairing_of(model: PreTrainedModel, asked: bool | None) -> Pairing:
    """How text columns are read for a model.

    Args:
        model: converted or not.
        asked: what somebody said, or None.

    Raises:
        HeadsError: no adapter for the model's architecture.
    """
    served = auto_classes(adapter_of(model.config))
    names = {cls.__name__ for cls in type(model).__mro__}  # derived classes descend from the host's
    usual = any(served.get(auto) in names for auto in _PAIRED)
    return Pairing(asked, type(model).__name__.removeprefix("Heads"), usual)
