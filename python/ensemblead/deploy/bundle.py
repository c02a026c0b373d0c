"""A bundle: a folder with a model and all that runs it, for machines without a network."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ensemblead import store
from ensemblead.common.files import StrPath, write_atomically
from ensemblead.common.manifests import checksum_of, file_entry
from ensemblead.deploy.checking import MANIFEST, RULE, verdict_of
from ensemblead.deploy.wheels import OWN, Target, Wheel, needed_wheels
from ensemblead.detectors import Detector
from ensemblead.ensembles.checks.subject import methods
from ensemblead.kernels.build import __version__

_SCRIPTS = ("install.sh", "install.bat", "check.sh", "check.bat", "README.txt")
Progress = Callable[[str, int, int], None]


def write_bundle(
    detector: Detector,
    wheels: StrPath,
    out: StrPath,
    *,
    image: StrPath,
    target: Target,
    extras: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a fitted detector, the wheels that it needs, and scripts that install and check them.

    Nothing stands at `out` before everything is written. Returns what `bundle.json` says, see `checking.py`.

    Args:
        detector: it is saved with the weights of its networks.
        wheels: a folder with wheels, among them this library's own, of this version.
        out: the folder, which must not exist.
        image: a photograph. Its score is recorded, and compared after the installation.
        target: the machine that the bundle is for.
        extras: of this library, to be installed there beside `predict`. What the model needs is added.
        progress: called with a stage's name, how much is done, and how much there is.

    Raises:
        MissingWheelsError: wheels that the folder lacks for that machine, with commands that fetch them.
        ValueError: `out` exists, an extra that is none, a file that is no wheel, or a detector that needs a
            module of the caller's.
        FileNotFoundError: no folder of wheels, or no image.
    """
    place = Path(os.path.abspath(out))
    if os.path.lexists(place):
        raise ValueError(f"out {place} exists; choose another, or remove it")
    photo = Path(image)
    if not photo.is_file():
        raise FileNotFoundError(f"image: no such file: {photo}")
    wanted = [f"{OWN}[{','.join(('predict', *extras))}]=={__version__}", *needed_packages(detector)]
    if "gpu" in extras:  # its FAISS and that for CPUs have the same files
        wanted = [one for one in wanted if one != "faiss-cpu"]
    chosen = needed_wheels(wheels, wanted, target)
    written: list[dict[str, Any]] = []

    def write(folder: Path) -> None:
        store.save(detector, folder / "model", include_backbone=True)
        again = store.load(folder / "model", device="cpu")
        seen = again.predict([photo])
        name = f"image{photo.suffix}"
        shutil.copyfile(photo, folder / name)
        _copy(chosen, folder / "wheels", progress)
        texts = {
            "requirements.txt": "".join(wheel.pinned() for wheel in chosen),
            **{script: _script(script, target) for script in _SCRIPTS},
        }
        for script, text in texts.items():
            write_atomically(folder / script, text)
        for script in ("install.sh", "check.sh"):
            (folder / script).chmod(0o755)
        document = {
            "format": 1,
            "written_by": f"{OWN} {__version__}",
            "python": f"{target.python[0]}.{target.python[1]}",
            "platform": target.platform,
            "detector": repr(again),
            "image": name,
            "score": float(seen.anomaly_score[0]),
            "is_anomalous": verdict_of(again, seen),
            "tolerance": RULE["float32" if _is_exact(again) else "other"],
            "files": {one: file_entry((folder / one).read_bytes()) for one in (name, *texts)},
        }
        document["checksum"] = checksum_of(document)
        write_atomically(folder / MANIFEST, json.dumps(document, indent=1))
        written.append(document)

    store.write_folder(place, write, keep=True)
    return written[0]


def needed_packages(detector: Detector) -> list[str]:
    """What a detector needs beside the extra `predict`, as requirements.

    Raises ValueError for one that was fitted with a module, which only the caller's code can build.
    """
    sources = [one.network.extractor for one in detector._networks()]
    if any(one.source["kind"] == "module" for one in sources):
        raise ValueError(
            "model: it was fitted with a torch.nn.Module, which only your own code can build again; such a "
            "model cannot be bundled"
        )
    found = []
    named = [one for one in sources if one.source.get("name") is not None]
    if any(one.description() is None and not one.name.startswith("pdn_") for one in named):
        found += ["timm", "torchvision"]
    settings = list(_settings(detector.describe()))
    if any(one.get("index", "flat") != "flat" for one in settings):
        found.append("faiss-cpu")
    if any(one.get("engine") == "openvino" or one.get("precision") == "int8" for one in settings):
        found.append("openvino")
    return found


def _settings(value: Any) -> Iterator[Mapping[str, Any]]:
    """A description and all those inside of it."""
    if isinstance(value, Mapping):
        yield value
        for one in value.values():
            yield from _settings(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _settings(one)


def _is_exact(detector: Detector) -> bool:
    """Whether all networks compute in float32 on a CPU, those that are trained too."""
    return all(one.precision in ("auto", "float32") for one in methods(detector))


def _copy(wheels: Sequence[Wheel], folder: Path, progress: Progress | None) -> None:
    folder.mkdir()
    for number, wheel in enumerate(wheels):
        if progress is not None:
            progress("copying wheels", number, len(wheels))
        shutil.copyfile(wheel.path, folder / wheel.path.name)
    if progress is not None:
        progress("copying wheels", len(wheels), len(wheels))


def _script(name: str, target: Target) -> str:
    text = (files(__package__) / "assets" / name).read_text(encoding="utf-8")
    major, minor = target.python
    filled = text.replace("@MAJOR@", str(major)).replace("@MINOR@", str(minor))
    filled = filled.replace("@PLATFORM@", target.platform).replace("@VERSION@", __version__)
    return filled.replace("\n", "\r\n") if name.endswith(".bat") else filled
