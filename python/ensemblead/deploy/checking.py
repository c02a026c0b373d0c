"""The check of an installed bundle: files, versions, and the score of an image. Needs no network.

`check.sh` of a bundle runs it: `python -m ensemblead.deploy.checking FOLDER`. `bundle.json` states the target
(`python`, `platform`), the `image` and its `score` and verdict at the time of writing, how far the score may
move relative to itself or, if that is larger, the threshold (`tolerance`), and size and SHA-256 of all files
but the model's and the wheels, which have their own.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemblead.common.errors import DamagedModelError, EnsembleADError
from ensemblead.common.files import StrPath
from ensemblead.common.manifests import check_place, require_checksum, require_entries, verified_bytes

if TYPE_CHECKING:
    from ensemblead.common.predictions import Predictions
    from ensemblead.detectors import Detector

MANIFEST = "bundle.json"
# How far a score may move from one processor to another, relative to itself or to the threshold, by the
# networks' precision.
RULE = {"float32": 1e-3, "other": 0.05}


class BundleError(EnsembleADError):
    """An installed bundle that does not do what it did when it was written."""


def check_bundle(folder: StrPath) -> str:
    """Check an installed bundle, and say in a line what was found.

    Raises:
        DamagedModelError: a file of the bundle is missing or was altered.
        BundleError: packages have other versions than those that came with it, or the image another score.
    """
    import numpy as np

    from ensemblead import store
    from ensemblead.detectors.exporting import score_changes

    place = Path(folder)
    manifest = _read(place)
    for name, entry in manifest["files"].items():
        check_place(place, name, entry)
        verified_bytes(place / name, entry)
    _check_versions((place / "requirements.txt").read_text())
    detector = store.load(place / "model", device="cpu")
    seen = detector.predict([place / manifest["image"]])
    score, expected = float(seen.anomaly_score[0]), float(manifest["score"])
    known = detector.calibration_
    (moved,) = score_changes(np.array([score]), np.array([expected]), known.threshold, known.rounding)
    if not moved <= manifest["tolerance"]:
        raise BundleError(
            f"{manifest['image']} has the score {score:.6g} here, but had {expected:.6g} when the bundle was "
            f"written; it moves by {moved:.2g} of itself or of the threshold, and may by "
            f"{manifest['tolerance']:g}"
        )
    verdict = verdict_of(detector, seen)
    if verdict != manifest["is_anomalous"]:
        raise BundleError(
            f"{manifest['image']} is called {called(verdict)} here, but was called "
            f"{called(manifest['is_anomalous'])} when the bundle was written (score {score:.6g})"
        )
    return (
        f"{manifest['image']}: score {score:.6g}, {called(verdict)}, as when the bundle was written "
        f"({expected:.6g})"
    )


def verdict_of(detector: Detector, seen: Predictions) -> bool | None:
    """Whether the first image is anomalous; None where the detector has no threshold."""
    return bool(seen.is_anomalous[0]) if math.isfinite(detector.threshold_) else None


def called(verdict: bool | None) -> str:
    """A verdict in words."""
    return {None: "neither, for want of a threshold", True: "anomalous", False: "normal"}[verdict]


def _read(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedModelError(f"{folder} is no bundle: it has no {MANIFEST}") from None
    except ValueError as error:
        raise DamagedModelError(f"{path} is damaged: {error}") from error
    if type(manifest) is not dict or type(manifest.get("files")) is not dict:
        raise DamagedModelError(f"{path} is damaged: it states no files")
    require_checksum(manifest, path)
    require_entries(manifest, path)
    return manifest


def _check_versions(requirements: str) -> None:
    """Raise BundleError where a package is missing or has another version than the requirements pin."""
    wrong = []
    for line in requirements.splitlines():
        name, version = line.split(" ")[0].split("==")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        if found != version:
            wrong.append(f"{name} is {found}, not {version}")
    if wrong:
        raise BundleError(f"other packages than those of the bundle: {'; '.join(wrong)}")


def main() -> None:
    """Check the bundle that the command line names. Exit codes: 0 all is well, 1 it is not."""
    try:
        print(check_bundle(sys.argv[1]))
    except (EnsembleADError, OSError, ValueError) as error:
        raise SystemExit(f"check failed: {error}") from None


if __name__ == "__main__":
    main()
