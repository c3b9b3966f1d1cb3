"""Tells the verdict of a full run from some of its windows, with a stated error.

What is unknown is one number: ``S``, the sum over all windows of measured less recorded
losses (nats). Every metric of a window method is a rising function of it, so that each
bound of a gate is a bound on S, and windows that are scored in a random order are a
sample of it without replacement.

**Order.** The next window is drawn with a probability proportional to the tokens that
it scores. Then the expected change *per token* of the next window is exactly the mean
of all unseen tokens, whatever the windows' sizes. The draw is made once, from the
digest of the recorded windows: nobody picks it, and every run has the same.

**Bets.** To show that S is below ``s``, bet against "S is at least s". If that were
true, the unseen tokens would have a mean change of at least
``m = (s - seen change) / unseen tokens``. Where none can be above ``u``, the wealth

    K = product of (1 + c (m - x) / (u - m))          0 < c <= 1

over the changes ``x`` per token of the windows seen is never negative and, if the
hypothesis is true, not expected to grow, so that it ever reaches ``1 / error`` with a
probability of at most ``error`` (Ville), however often one looks. The wealths of
several c, each with its share of the stake, are summed. At c = 1, where all changes
seen are 0, K is one over the probability that a sample avoids all spoilt windows. To
show that S is above s, the same with all signs turned round. Sources: Waudby-Smith and
Ramdas, *Confidence sequences for sampling without replacement*, NeurIPS 2020;
*Estimating means of bounded random variables by betting*, JRSS-B 2023.

**What bounds a change.** A loss is never negative, so that no window can fall by more
than its recorded loss: that makes an early failure valid without any assumption. No
rise is impossible, so that an early pass needs a cap that the user sets. It is two
assumptions: S can be seen to be above a bound if nothing falls by more, and to be below
one if nothing rises by more. A window that breaks one of them leaves the other.
Where the worst (or best) that unseen windows could do does not matter any more, the
verdict is known without an error.

**Error.** For two hypotheses of one direction, "at least s" and "at least t > s", the
second one's wealth is always the larger. So among all bounds of a key's gates only the
one next above S and the one next below it can be crossed wrongly before others are: two
tests, whatever the number of metrics. Beyond the outermost bounds there is only one.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from ..errors import InvalidLossError
from ..values import (
    EarlyStop,
    Measurement,
    MetricName,
    Recorded,
    Scalar,
    WindowScore,
)
from .comparable import differences

Decided = Literal["within", "regressed", "improved"]
Recompute = Callable[
    [Sequence[WindowScore], Mapping[str, int]], dict[MetricName, float]
]
Range = tuple[float | None, float | None]

BETS = ((1.0, 0.85), (0.5, 0.05), (0.25, 0.05), (0.125, 0.05))
"""Each c, and its share of the stake. Most is on 1, which is the best while changes are
small beside their bound; the others are for changes that scatter."""

WITH_CAP = 0.9
"""Share of a bet on a failure that is laid under the cap. The rest is laid on losses
not being negative: it is what is left once a window has broken the cap."""

SAME = 1e-9
"""Relative. A metric that is this near to a function of S is taken for it, and bounds
are held to be as uncertain."""


def scoring_order(digest: str, scored: Sequence[int]) -> list[int]:
    """Indices of windows in a random order that ``digest`` fixes.

    Windows race, each with a rate of the tokens that it scores: that draws them one by
    one with a probability proportional to ``scored``.
    """

    def time(index: int) -> float:
        draw = hashlib.sha256(f"{digest} {index}".encode()).digest()[:8]
        uniform = (int.from_bytes(draw) + 0.5) / 2**64
        return -math.log(uniform) / scored[index]

    return sorted(range(len(scored)), key=time)


class _Bets:
    """Bets against "the changes of all windows sum to ``total`` or more"."""

    def __init__(self, total: float, tokens: int) -> None:
        self._left = total
        self._tokens = tokens
        self._wealth = [share for _, share in BETS]

    @property
    def wealth(self) -> float:
        """What has become of a stake of 1."""
        return sum(self._wealth)

    def see(self, change: float, tokens: int, ceiling: float) -> None:
        """A window; neither it nor a later one changes by more a token."""
        mean = self._left / self._tokens
        if mean < ceiling:  # else the hypothesis is dead, see `is_dead`
            lead = (mean - change / tokens) / (ceiling - mean)
            self._wealth = [
                held * max(0.0, 1 + c * lead)
                for held, (c, _) in zip(self._wealth, BETS, strict=True)
            ]
        self._left -= change
        self._tokens -= tokens

    def is_dead(self, most: float) -> bool:
        """Whether the sum stays below, where unseen changes sum to ``most`` at most."""
        return self._left > most


class _Bound:
    """What is known of one value of S: whether the true one is above it, or below.

    ``above`` is ``"free"`` where nothing was assumed for it. ``chances`` are the errors
    that may be made for above and below.
    """

    def __init__(
        self,
        total: float,
        tokens: int,
        *,
        slack: float,
        capped: bool,
        chances: tuple[float, float],
    ) -> None:
        self.above: Literal["", "capped", "free"] = ""
        self.below = False
        self._chances = chances
        self._capped = capped
        self._rise = _Bets(-total - slack, tokens)
        self._free_rise = _Bets(-total - slack, tokens)
        self._fall = _Bets(total - slack, tokens)

    def see(
        self, window: _Seen, *, most_fall: float | None, most_rise: float | None
    ) -> None:
        """A window, and by how much, a token, none is assumed to fall or to rise.

        None where nothing is assumed, or where a window has broken it.
        """
        self._free_rise.see(-window.change, window.tokens, window.floor)
        free = self._free_rise.wealth * (1 - WITH_CAP if self._capped else 1)
        wanted_above, wanted_below = (1 / chance for chance in self._chances)
        if free >= wanted_above or self._free_rise.is_dead(window.fall_left):
            self.above = "free"
        if most_fall is None:
            self.above = "free" if self.above == "free" else ""
        else:
            self._rise.see(-window.change, window.tokens, most_fall)
            risen = free + WITH_CAP * self._rise.wealth >= wanted_above
            dead = self._rise.is_dead(most_fall * window.tokens_left)
            if not self.above and (risen or dead):
                self.above = "capped"
        if most_rise is None:
            self.below = False
        else:
            self._fall.see(window.change, window.tokens, most_rise)
            dead = self._fall.is_dead(most_rise * window.tokens_left)
            if self._fall.wealth >= wanted_below or dead:
                self.below = True


class _Seen(Struct, frozen=True):
    """A window in its turn, and what is left behind it.

    ``floor`` is what neither it nor a later window can fall by more, in nats a token,
    ``fall_left`` what all later ones can fall by, in nats.
    """

    change: float
    tokens: int
    floor: float
    fall_left: float
    tokens_left: int


class EarlyTest:
    """Takes windows in their order until the verdicts of all gates are known.

    Args:
        recorded: the baseline's windows, in the text's order.
        order: the windows' indices, see :func:`scoring_order`.
        allowed: what each metric's gate allows S to be (nats); None is an open end.
        cap: nats a token that no window is assumed to have moved by; None: nothing is.
        error: largest probability that any verdict is not the full run's.
        slack: by how much (nats) the bounds may be off.
        only_failing: metrics that only all windows can let pass.
    """

    def __init__(
        self,
        recorded: Sequence[WindowScore],
        order: Sequence[int],
        allowed: Mapping[MetricName, Range],
        *,
        cap: float | None,
        error: float,
        slack: float = 0.0,
        only_failing: Collection[MetricName] = (),
    ) -> None:
        self.seen = 0
        self.change = 0.0
        self.tokens = 0
        self.broken_by: tuple[int, float] | None = None
        self._recorded = recorded
        self._order = order
        self._allowed = allowed
        self._cap = cap
        self._most_fall = self._most_rise = cap
        self._error = error
        self._only_failing = frozenset(only_failing)
        losses = [recorded[index].nll_sum for index in order]
        sizes = [recorded[index].scored for index in order]
        self._all_tokens = sum(sizes)
        rates = [loss / size for loss, size in zip(losses, sizes, strict=True)]
        self._floors = list(itertools.accumulate(reversed(rates), max))[::-1]
        self._falls = [*itertools.accumulate(reversed(losses), initial=0.0)][::-1]
        totals = sorted({s for pair in allowed.values() for s in pair if s is not None})
        self._bounds = {
            total: _Bound(
                total,
                self._all_tokens,
                slack=slack,
                capped=cap is not None,
                chances=(
                    # Without a cap nothing can be found to be below.
                    error if total == totals[0] or cap is None else error / 2,
                    error if total == totals[-1] else error / 2,
                ),
            )
            for total in totals
        }

    def __call__(self, scores: Mapping[int, WindowScore]) -> bool:
        """Whether these scores, by index, are enough; each is looked at in its turn."""
        while self.seen < len(self._order) and not self.is_known:
            index = self._order[self.seen]
            if index not in scores:
                break
            self._see(index, scores[index])
        return self.is_known

    def _see(self, index: int, score: WindowScore) -> None:
        then = self._recorded[index]
        change = score.nll_sum - then.nll_sum
        position = self.seen
        self.seen += 1
        self.change += change
        self.tokens += score.scored
        moved = change / score.scored
        if self._cap is not None and abs(moved) > self._cap:
            self.broken_by = self.broken_by or (index, moved)
            if moved > 0:
                self._most_rise = None
            else:
                self._most_fall = None
        window = _Seen(
            change=change,
            tokens=score.scored,
            floor=self._floors[position],
            fall_left=self._falls[position + 1],
            tokens_left=self._all_tokens - self.tokens,
        )
        for bound in self._bounds.values():
            bound.see(window, most_fall=self._most_fall, most_rise=self._most_rise)

    @property
    def decided(self) -> dict[MetricName, Decided]:
        """The outcomes that are known."""
        found = {name: self._outcome(name) for name in self._allowed}
        return {name: outcome for name, outcome in found.items() if outcome is not None}

    @property
    def is_known(self) -> bool:
        """Whether every gate's outcome is."""
        return all(self._outcome(name) is not None for name in self._allowed)

    def _outcome(self, metric: MetricName) -> Decided | None:
        low, high = (
            None if s is None else self._bounds[s] for s in self._allowed[metric]
        )
        if high is not None and high.above:
            return "regressed"
        if high is not None and not high.below:
            return None
        if low is not None and low.below:
            return "improved"
        if metric in self._only_failing:
            return None
        return "within" if low is None or low.above else None

    def stopped(self) -> EarlyStop:
        """Why the measurement ends here."""
        decided = self.decided
        free = {s for s, bound in self._bounds.items() if bound.above == "free"}
        assumed = any(
            outcome != "regressed" or self._allowed[name][1] not in free
            for name, outcome in decided.items()
        )
        return EarlyStop(
            seen=self.seen,
            windows=len(self._order),
            cap=self._cap if assumed else None,
            error=self._error,
            decided=decided,
        )


# --------------------------------------------------------------------- from gates to S


class _Form(Struct, frozen=True):
    """A metric that is ``exp(L / units)`` of summed losses, or ``L / units / ln 2``."""

    units: int
    exponential: bool

    def value(self, loss: float) -> float:
        mean = loss / self.units
        return math.exp(min(mean, 700.0)) if self.exponential else mean / math.log(2)

    def loss(self, value: float) -> float:
        """The summed loss that gives ``value``."""
        mean = math.log(value) if self.exponential else value * math.log(2)
        return mean * self.units


def _form_of(
    metric: MetricName,
    windows: Sequence[WindowScore],
    units: Mapping[str, int],
    recompute: Recompute,
) -> _Form | None:
    """How a metric follows from the summed loss, None where it does not.

    Tried on the windows as they are, and with each one's loss moved by another share: a
    mean in which windows weigh differently may agree on the first, not on the second.
    """
    moved = [
        replace(score, nll_sum=score.nll_sum * (1 + 0.1 * math.sin(index)))
        for index, score in enumerate(windows)
    ]
    forms = [
        _Form(n, exponential) for n in units.values() for exponential in (True, False)
    ]
    for scores in (windows, moved):
        try:
            value = recompute(scores, units).get(metric)
        except InvalidLossError:
            return None
        loss = math.fsum(score.nll_sum for score in scores)
        forms = [
            form
            for form in forms
            if value is not None and math.isclose(form.value(loss), value, rel_tol=SAME)
        ]
    return forms[0] if forms else None


class EarlyPlan:
    """All that may end the measurement of one key early; it is asked before and during.

    ``remark`` says why all windows are needed, ``breach`` which of them broke the cap;
    empty where that is not so. ``only_failing`` are metrics that only all windows can
    let pass.

    Args:
        recorded: the baseline.
        protocol: properties from its evidence.
        windows: the windows of its evidence.
        allowed: the bounds of each gated metric; None is an open end.
        recompute: the metrics of the key's method from windows and units.
        cap: nats a token that no window is assumed to have moved by; None: nothing is.
        error: largest probability that any verdict is not the full run's.
        only_failing: metrics that only all windows can let pass.
    """

    def __init__(
        self,
        recorded: Recorded,
        protocol: Mapping[str, Scalar],
        windows: Sequence[WindowScore],
        allowed: Mapping[MetricName, Range],
        *,
        recompute: Recompute,
        cap: float | None,
        error: float,
        only_failing: Collection[MetricName] = (),
    ) -> None:
        self.remark = ""
        self.breach = ""
        self._recorded = recorded
        self._protocol = protocol
        self._windows = tuple(windows)
        self._recompute = recompute
        self._cap = cap
        self._error = error
        self.only_failing = tuple(only_failing)
        self._allowed: dict[MetricName, Range] = {}
        self._slack = 0.0
        for metric, pair in allowed.items():
            form = _form_of(metric, windows, recorded.units, recompute)
            if form is None:
                self.remark = f"{metric} does not follow from the sum of all losses"
                return
            self._allowed[metric] = self._range(form, pair)
            self._slack = max(self._slack, SAME * form.units)
        self.remark = self._why_never()

    def _why_never(self) -> str:
        """Why these gates and this cap cannot stop early, or should not."""
        pairs = self._allowed.values()
        if any(pair == (None, None) for pair in pairs) or not pairs:
            return "there is nothing that it could break"
        if self._cap is None:
            if any(high is None for _, high in pairs):
                return "without a cap only a regression can be known early"
            return ""
        tokens = sum(score.scored for score in self._windows)
        room = min((abs(s) for pair in pairs for s in pair if s is not None), default=0)
        if room < self._cap * tokens:
            return ""
        # Every window within the cap would be a pass before the first was scored.
        return (
            f"the cap of {self._cap:g} nats a token is not above what a gate allows, "
            f"{room / tokens:.3g}: that would assume the verdict"
        )

    def _range(self, form: _Form, allowed: Range) -> Range:
        """Bounds of a metric as bounds of S."""
        now = math.fsum(score.nll_sum for score in self._windows)
        low, high = allowed
        return (
            # No perplexity is below 0, nor a loss.
            None if low is None or low <= 0 else form.loss(low) - now,
            None if high is None else form.loss(max(high, 1e-300)) - now,
        )

    def start(self, measured: Measurement) -> EarlyTest | None:
        """The test of a measurement whose windows are cut and not yet scored.

        ``measured`` has its properties, units and digests, and may have the baseline's
        metrics. None, and a :attr:`remark`, where it is not comparable to the baseline.
        """
        if self.remark:
            return None
        if differences(measured, self._recorded, self._protocol, self._windows):
            self.remark = "it is not comparable to its baseline"
            return None
        return EarlyTest(
            self._windows,
            self.order,
            self._allowed,
            cap=self._cap,
            error=self._error,
            slack=self._slack,
            only_failing=self.only_failing,
        )

    @property
    def windows(self) -> tuple[WindowScore, ...]:
        """The baseline's."""
        return self._windows

    @property
    def metrics(self) -> Mapping[MetricName, float]:
        """The baseline's."""
        return self._recorded.metrics

    @property
    def sizes(self) -> list[int]:
        """How many tokens each of its windows scores."""
        return [score.scored for score in self._windows]

    @functools.cached_property
    def order(self) -> list[int]:
        """In which windows are scored."""
        return scoring_order(self._recorded.windows_digest or "", self.sizes)

    def estimate(
        self, test: EarlyTest, units: Mapping[str, int]
    ) -> dict[MetricName, float] | None:
        """The baseline's metrics, all windows moved by the mean change of those seen.

        None where the method makes no finite number of that.
        """
        mean = test.change / test.tokens
        moved = [
            replace(score, nll_sum=score.nll_sum + mean * score.scored)
            for score in self._windows
        ]
        try:
            return self._recompute(moved, units)
        except InvalidLossError:
            return None

    def finish(self, test: EarlyTest) -> None:
        """Note what the windows said of the cap."""
        if test.broken_by is not None:
            index, moved = test.broken_by
            self.breach = (
                f"window {index + 1} of {len(self._windows)} moved by {moved:+.3g} "
                f"nats a token, more than the cap of {self._cap:g}: no gate could pass "
                "early"
            )


def early_text(stop: EarlyStop, metric: MetricName) -> str:
    """On what a verdict rests that was known before the last window."""
    windows = f"{stop.seen} of {stop.windows} windows"
    # A failure holds if the others do not make up for what was seen.
    moved = {"within": "moved", "regressed": "fell", "improved": "rose"}
    assumed = (
        ""
        if stop.cap is None
        else f", if no unseen window {moved[stop.decided[metric]]} by more than "
        f"{stop.cap:g} nats a token"
    )
    return (
        f"{stop.decided[metric]} after {windows}{assumed}; {100 * stop.error:g} % error"
    )
