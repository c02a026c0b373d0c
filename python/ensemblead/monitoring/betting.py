"""The bets of a monitor on new images, stream by stream."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ensemblead.monitoring.kept import Calibrated, Kept, Observed
from ensemblead.monitoring.martingales import Bets, Jumper, PowerMixture, shared
from ensemblead.monitoring.ranks import OnlineRanks, uniforms

STREAMS = ("score", "embedding", "regions")
# Slow bets on the score, where single defects show; fast ones elsewhere.
_BETTING: dict[str, Jumper | PowerMixture] = {
    "score": Jumper(),
    "embedding": PowerMixture(),
    "regions": PowerMixture(),
}
Ranks = dict[str, OnlineRanks]


def watched_streams(calibrated: Calibrated) -> tuple[str, ...]:
    """The streams that there is a calibration of."""
    return tuple(stream for stream in STREAMS if getattr(calibrated, stream) is not None)


def begun(model: str, precision: str, calibrated: Calibrated) -> Kept:
    """A monitor that has observed nothing."""
    bets: dict[str, Bets | None] = dict.fromkeys(STREAMS)
    for stream in watched_streams(calibrated):
        cells = _columns(getattr(calibrated, stream)).shape[1]
        bets[stream] = _BETTING[stream].start(cells)
    count = len(watched_streams(calibrated))
    return Kept(model, precision, calibrated, Observed.nothing(calibrated, count), **bets)


def online_ranks(kept: Kept) -> Ranks:
    """Of everything that is known."""
    found: Ranks = {}
    for stream in watched_streams(kept.calibrated):
        both = [_columns(getattr(part, stream)) for part in (kept.calibrated, kept.observed)]
        found[stream] = OnlineRanks(list(np.concatenate(both).T))
    return found


def after_bets(
    kept: Kept, ranks: Ranks, new: Observed, *, seed: int, restarting: bool
) -> tuple[Kept, npt.NDArray[np.float64]]:
    """The bets after new images, and the evidence after each: log10, of all streams together and of each.

    The new values join `ranks`; what else is kept stays as it is.
    """
    streams = watched_streams(kept.calibrated)
    rows = {stream: _columns(getattr(new, stream)) for stream in streams}
    bets: dict[str, Bets] = {stream: getattr(kept, stream) for stream in streams}
    ends = np.cumsum([row.shape[1] for row in rows.values()])
    evidence = np.empty((len(new.score), 1 + len(streams)))
    for place in range(len(new.score)):
        number = len(kept.observed.score) + place + 1
        drawn = np.split(uniforms(seed, number, int(ends[-1])), ends[:-1])
        for column, (stream, u) in enumerate(zip(streams, drawn, strict=True), 1):
            p = ranks[stream].p_values(rows[stream][place], u)
            bets[stream] = _BETTING[stream].step(bets[stream], p, number, restarting=restarting)
            evidence[place, column] = shared(bets[stream].evidence)
        evidence[place, 0] = shared(evidence[place, 1:])
    every = {stream: bets.get(stream) for stream in STREAMS}
    return Kept(kept.model, kept.precision, kept.calibrated, kept.observed, **every), evidence


def _columns(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return values if values.ndim == 2 else values[:, None]
