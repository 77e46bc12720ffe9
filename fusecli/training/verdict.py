"""What the numbers say, in sentences. Each holds what its interval shows and no more."""

from __future__ import annotations

import math

from fusecli.errors import counted
from fusecli.training.bootstrap import FEW_GROUPS, Interval
from fusecli.training.interaction import Interaction
from fusecli.training.results import ADDITIVE, CONCAT, FUSION, IMAGE, TEXT, PartResult


def signed(value: float) -> str:
    """`+0.11`; three digits where two would show nothing."""
    if not math.isfinite(value):
        return "unknown"
    return f"{value:+.2f}" if abs(value) >= 0.0995 else f"{value:+.3f}"


def plain(value: float) -> str:
    """`0.913`, or `unknown`."""
    return f"{value:.3f}" if math.isfinite(value) else "unknown"


def between(interval: Interval) -> str:
    """`95 % 0.08 to 0.14`."""
    if not math.isfinite(interval.low):
        return "no interval"
    digits = 2 if min(abs(interval.low), abs(interval.high)) >= 0.0095 else 3
    return f"95 % {interval.low:.{digits}f} to {interval.high:.{digits}f}"


def verdict(result: PartResult) -> list[str]:
    """Whether the image helps, what of it is interaction, and what speaks against the numbers."""
    fusion = result.model(FUSION)
    if fusion is not None and not math.isfinite(fusion.headline.value):
        sentences = [_unknown(result)]
    elif result.task == "match":
        sentences = [*_match(result)]
    else:
        sentences = [*_image(result), *_text(result)]
    if result.groups < FEW_GROUPS:
        sentences.append(
            f"warning: {counted(result.groups, 'group')} in the {result.part} part: with fewer "
            f"than {FEW_GROUPS} the intervals are rough and mostly too narrow"
        )
    return sentences


def _unknown(result: PartResult) -> str:
    why = "all its numbers are equal" if result.task == "regress" else "it has one class only"
    return f"warning: {result.headline} cannot be computed on the {result.part} part: {why}"


def _image(result: PartResult) -> list[str]:
    total = result.contrast(TEXT)
    if total is None:
        return []
    gain, name = total.difference, result.headline
    amount = f"{name} {signed(gain.value)} ({between(gain)})"
    if gain.above_zero:
        return [f"the image helps: {amount}; {_interaction(result)}"]
    if gain.below_zero:
        return [f"the image does harm: the fusion is worse than text only: {amount}"]
    found = [f"not shown that the image helps ({counted(result.groups, 'group')}): {amount}"]
    interaction = result.contrast(ADDITIVE)
    if interaction is not None and interaction.difference.below_zero:
        found.append(_below_additive(result))
    return found


def _interaction(result: PartResult) -> str:
    """What of the gain is more than both sides give by themselves."""
    found = result.contrast(ADDITIVE)
    if found is None:
        return "there is no additive model to compare it with"
    gain, total = found.difference, result.contrast(TEXT)
    if gain.above_zero and total is not None and gain.value >= total.difference.value:
        return "all of it is interaction: without it the image adds nothing to the text"
    if gain.above_zero:
        return f"of that {signed(gain.value)} is interaction ({between(gain)})"
    if gain.below_zero:
        return _below_additive(result)
    return (
        f"interaction adds nothing that is shown: {signed(gain.value)} over the additive model "
        f"({between(gain)})"
    )


def _below_additive(result: PartResult) -> str:
    found = result.contrast(ADDITIVE)
    assert found is not None
    return (
        f"the additive model, without interaction, is better than the fusion: "
        f"{signed(-found.difference.value)} ({between(_negative(found.difference))})"
    )


def _negative(interval: Interval) -> Interval:
    return Interval(-interval.value, -interval.high, -interval.low)


def _text(result: PartResult) -> list[str]:
    """Said where the text adds nothing, and where the simplest fusion is better."""
    found = []
    gain = result.contrast(IMAGE)
    if gain is not None and gain.difference.below_zero:
        better = _negative(gain.difference)
        found.append(
            f"the text does harm: {IMAGE} is better than the fusion: {result.headline} "
            f"{signed(better.value)} ({between(better)})"
        )
    elif gain is not None and not gain.difference.above_zero:
        found.append(
            f"that the text helps is not shown: {result.headline} "
            f"{signed(gain.difference.value)} over image only ({between(gain.difference)})"
        )
    simple = result.contrast(CONCAT)
    if simple is not None and simple.difference.below_zero:
        better = _negative(simple.difference)
        found.append(
            f"{CONCAT} is better than the fusion here: {result.headline} {signed(better.value)} "
            f"({between(better)})"
        )
    return found


def _match(result: PartResult) -> list[str]:
    model = result.model(FUSION)
    if model is None:
        return []
    value = model.headline
    shown = "the fusion finds" if value.low > 0.5 else "not shown that the fusion finds"
    found = [
        f"{shown} a text's own image: AUC {plain(value.value)} ({between(value)}; chance is 0.5)"
    ]
    simple = result.contrast(CONCAT)
    if simple is not None:
        gain = simple.difference
        how = "more" if gain.above_zero else "less" if gain.below_zero else "not shown to differ"
        found.append(f"over {CONCAT}: {signed(gain.value)} ({between(gain)}), {how}")
    return found


def interaction_sentences(found: Interaction) -> list[str]:
    """The two lines of `evaluate` about interaction and reliance, and one of meaning."""
    name = found.headline
    sample = "" if found.exact else f", on a sample of {found.pairs:,} pairs"
    lines = []
    if found.additive is not None and found.worth is not None:
        lines.append(
            f"without interaction (EMAP{sample}): {name} {plain(found.additive)}, with it "
            f"{plain(found.model)}: within this model, interaction is worth "
            f"{signed(found.worth.value)} ({between(found.worth)})"
        )
    wrong = []
    if found.images is not None:
        wrong.append(f"images {name} {plain(found.images.mean)}")
    if found.texts is not None:
        wrong.append(f"texts {name} {plain(found.texts.mean)}")
    if wrong:
        lines.append(f"shuffled across groups: {', '.join(wrong)}")
    meaning = _meaning(found)
    return [*lines, meaning] if meaning else lines


def _meaning(found: Interaction) -> str:
    if found.worth is None:
        return ""
    relies = found.images is not None and found.images.highest < found.model
    if found.worth.above_zero:
        return (
            f"meaning: the {FUSION} reads text and image together; a sum of what each says by "
            "itself does not reach it"
        )
    if relies:
        return (
            f"meaning: the {FUSION} uses the image, but as a sum of what text and image say each "
            "by itself"
        )
    return f"meaning: the {FUSION} does as well with wrong images: it does not use them"
