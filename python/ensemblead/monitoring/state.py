"""What a drift monitor says: whether images have changed, in what, where, since when, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ensemblead.metrics import rate_interval

Advice = Literal["none", "look", "calibrate", "extend", "refit"]
Box = tuple[float, float, float, float]
# Of the interval of an alarm rate.
CONFIDENCE = 0.95

_WORDS: dict[str, str] = {
    "none": "Nothing speaks for a change.",
    "look": "Something may have changed, which is not certain yet. Look at the latest images.",
    "calibrate": (
        "The images have changed, but the detector calls no more of them anomalous than it states. If the "
        "new images are good, calibrate the detector with fresh ones, and then this monitor."
    ),
    "extend": (
        "The images have changed, and the detector calls more of them anomalous than it states. If the new "
        "images are good, extend the detector with some of them; then calibrate both anew."
    ),
    "refit": (
        "The images have changed so much that the detector should be fitted again, if the new images are "
        "good. If they are not, look for what has changed on the line."
    ),
}
_MORE_ANOMALOUS = (
    "More images are called anomalous than the detector states, which is no evidence of a change by itself. "
    "Look at them: they may be defects."
)
_WITHOUT_RATE = (
    "The images have changed. The detector states no rate of false alarms, so that nothing is known of its "
    "verdicts. If the new images are good, calibrate the detector with fresh ones, and then this monitor."
)


@dataclass(frozen=True)
class AlarmRate:
    """How many images the detector called anomalous, against the rate that it states.

    `rate` is `anomalous / images`, NaN for no image; `low` and `high` are its Clopper-Pearson interval of
    95 % (Biometrika 26, 1934); `stated` is the detector's `calibration_.false_alarm_rate`, None where it
    states none, as one whose threshold was given.
    """

    anomalous: int
    images: int
    stated: float | None

    @property
    def rate(self) -> float:
        return self.anomalous / self.images if self.images else float("nan")

    @property
    def low(self) -> float:
        return self._interval()[0]

    @property
    def high(self) -> float:
        return self._interval()[1]

    @property
    def is_raised(self) -> bool:
        """Whether the whole interval lies above the stated rate."""
        return self.stated is not None and self.low > self.stated

    def _interval(self) -> tuple[float, float]:
        low, high = rate_interval(self.anomalous, self.images, CONFIDENCE)
        return float(low), float(high)


@dataclass(frozen=True, eq=False)
class DriftState:
    """What a `DriftMonitor` has found so far.

    Attributes:
        alarm: whether the evidence has ever reached `level`; it stays until `reset`.
        alarm_at: the place of the image that raised it, counted from 0; None without alarm.
        level: log10 of the evidence that raises an alarm.
        total: log10 of the evidence of all streams together: the largest of theirs, divided by their number.
        evidence: log10 of the evidence of each stream: that a line without change ever shows 2 has a
            probability of at most 1/100.
        images: how many images were observed.
        repeated: how many were left out, since they had been observed, or learned by the detector, before.
        since: the estimated place of the first changed image, counted from 0; None while there is less than a
            tenth of the evidence of an alarm. `since_path`: its file, if it is one.
        score_ratio, score_p90_ratio: of the images since then (of all, if there is no `since`) the median and
            the 90th percentile of the scores, divided by those of the calibration. None where scores lie
            about 0, as those of standardising ensembles do, and without images.
        alarm_rate: of the same images.
        regions: float64 `[r, r]`, log10 of the evidence of each cell of the image; None without that stream.
        moved: the cells that have reached the level of an alarm by themselves, as `(top, left, bottom,
            right)` in pixels of the latest photograph, or of the map where the photograph's size is not
            known. Empty without an alarm: each of many cells may come that far by chance.
        advice: "none", "look", "calibrate", "extend" or "refit".
    """

    alarm: bool
    alarm_at: int | None
    level: float
    total: float
    evidence: Mapping[str, float]
    images: int
    repeated: int
    since: int | None
    since_path: str | None
    score_ratio: float | None
    score_p90_ratio: float | None
    alarm_rate: AlarmRate
    regions: npt.NDArray[np.float64] | None
    moved: tuple[Box, ...]
    advice: Advice

    def __repr__(self) -> str:
        kind = f"alarm at image {self.alarm_at}" if self.alarm else "no alarm"
        return f"DriftState({kind}, {self.images} images, evidence 10^{self.total:.2f}, advice {self.advice})"

    @property
    def advice_text(self) -> str:
        """The advice in a sentence or two."""
        if self.advice == "calibrate" and self.alarm_rate.stated is None:
            return _WITHOUT_RATE
        if self.advice == "look" and self.alarm_rate.is_raised:
            return _MORE_ANOMALOUS if self.since is None else f"{_WORDS['look']} {_MORE_ANOMALOUS}"
        return _WORDS[self.advice]

    def as_dict(self) -> dict[str, Any]:
        """Everything in JSON's types."""
        found = {name: value for name, value in asdict(self).items() if name != "alarm_rate"}
        rate = self.alarm_rate
        found["evidence"] = dict(self.evidence)
        found["regions"] = None if self.regions is None else self.regions.tolist()
        found["moved"] = [list(box) for box in self.moved]
        found["alarm_rate"] = {
            **asdict(rate),
            **{name: getattr(rate, name) for name in ("rate", "low", "high")},
        }
        return {**found, "advice_text": self.advice_text}


def advised(alarm: bool, nears: bool, rate: AlarmRate, *, far: bool, can_extend: bool) -> Advice:
    """What to do. `nears`: a tenth of an alarm's evidence is there; `far`: scores are far from normal."""
    if not alarm:
        return "look" if nears or rate.is_raised else "none"
    if not rate.is_raised:
        return "calibrate"
    return "refit" if far or not can_extend else "extend"
