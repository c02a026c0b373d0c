"""The statistics of models saved by format 1, in today's terms."""

from __future__ import annotations

from ensemblead.calibration import Calibration
from ensemblead.store import FolderReader

# What rounding was taken to move scores by.
_ROUNDING, _ROOT_ROUNDING, _MAHALANOBIS_ROUNDING = 1e-12, 1e-6, 1e-4


def calibration_of_format1(reader: FolderReader, rounding: float | None = None) -> Calibration:
    """The statistics of a detector; `rounding` of an ensemble, whose parts know theirs."""
    with reader.as_damage():
        values = dict(reader.state["calibration"])
        arrays = {name: tensor.numpy() for name, tensor in reader.tensors("calibration.safetensors").items()}
        fresh, images = values.pop("fresh"), values.pop("images")
        values.pop("summary", None)
        if not isinstance(fresh, bool):
            raise TypeError(f"fresh must be a bool, got {fresh!r}")
        if rounding is None:
            own = _ROOT_ROUNDING if reader.state["parameters"].get("score") == "reweighted" else _ROUNDING
            rounding = _MAHALANOBIS_ROUNDING if reader.class_name == "PaDiM" else own
        origin = "calibrated" if fresh else "leave_one_out"
        return Calibration(
            scores=arrays["scores"],
            pixels=arrays["pixels"],
            origin=origin,  # type: ignore[arg-type]
            images_sha256=images,
            rounding=rounding,
            **values,
        )
