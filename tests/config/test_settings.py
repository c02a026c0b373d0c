"""Settings: one parameter set wherever a description takes it."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("yaml")

from support.registry import separate_registry

from ensemblead.config.documents import Problems, Source
from ensemblead.config.registry import register
from ensemblead.config.settings import differing_names, named_setting, typed_setting, with_settings

CORE: dict[str, Any] = {"type": "PatchCore", "backbone": "gabor"}
PADIM: dict[str, Any] = {"type": "PaDiM", "backbone": "gabor"}
PAIR: dict[str, Any] = {"type": "BackboneEnsemble", "members": [CORE, PADIM]}
TILES: dict[str, Any] = {"type": "TiledEnsemble", "member": CORE, "tile_size": 32}


def changed(description: Any, *texts: str) -> Any:
    problems = Problems(Source({}, "command line"))
    found = with_settings(description, map(typed_setting, texts), problems)
    problems.raise_any()
    return found


def test_forms() -> None:
    one = typed_setting("1.coreset-fraction=0.5")
    assert (one.name, one.value, one.member) == ("coreset_fraction", 0.5, 1)
    assert typed_setting("weights=a=b").value == "a=b"
    assert typed_setting("layers=[a, b.c]").value == ["a", "b.c"]
    assert named_setting("0.seed", 3).member == 0
    assert named_setting("seed", 3).member is None
    for wrong in ("seed", "=3", "", "a b=3"):
        with pytest.raises(ValueError, match="NAME=VALUE"):
            typed_setting(wrong)
    with pytest.raises(ValueError, match="is not a YAML value"):
        typed_setting("layers=[a")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("seed=3", "seed", 3),
        ("coreset_fraction=1", "coreset_fraction", 1.0),
        ("coreset_fraction=1e-3", "coreset_fraction", 0.001),
        ("resize=none", "resize", None),
        ("resize=null", "resize", None),
        ("resize=12x34", "resize", (12, 34)),
        ("resize=[12, 34]", "resize", (12, 34)),
        ("pretrain_dim=auto", "pretrain_dim", "auto"),
        ("pretrain_dim=[1, 2]", "pretrain_dim", [1, 2]),
        ("layers=layer1", "layers", ["layer1"]),
        ("layers=auto", "layers", "auto"),
        ("backbone=18", "backbone", "18"),
        ("device=cuda:1", "device", "cuda:1"),
        ("compile=true", "compile", True),
        ("weights=default", "weights", "default"),
    ],
)
def test_values(text: str, name: str, value: Any) -> None:
    found = changed(CORE, text)
    assert found == {**CORE, name: value}
    assert type(found[name]) is type(value)
    assert name == "backbone" or name not in CORE  # what was given is not touched


class TestReach:
    def test_every_member_that_takes_it(self) -> None:
        found = changed(PAIR, "seed=3", "target_dim=9", "num_dimensions=5")
        assert found["members"] == [
            {**CORE, "seed": 3, "target_dim": 9},
            {**PADIM, "seed": 3, "num_dimensions": 5},
        ]

    def test_one_member(self) -> None:
        # Whatever the order.
        found = changed(PAIR, "1.seed=4", "seed=3")
        assert [member["seed"] for member in found["members"]] == [3, 4]

    def test_one_value_for_each_member(self) -> None:
        found = changed(PAIR, "seed=[3, 4]", "layers=[[a], [b, c]]")
        assert [member["seed"] for member in found["members"]] == [3, 4]
        assert [member["layers"] for member in found["members"]] == [["a"], ["b", "c"]]

    def test_the_ensemble(self) -> None:
        found = changed(PAIR, "fusion=max")
        assert found == {**PAIR, "fusion": "max"}
        # Members take weights, too, but not numbers.
        assert changed(PAIR, "weights=[1, 2]")["weights"] == [1.0, 2.0]
        assert [one["weights"] for one in changed(PAIR, "weights=w.pt")["members"]] == ["w.pt", "w.pt"]
        assert [one["weights"] for one in changed(PAIR, "weights=[a, null]")["members"]] == ["a", None]

    def test_tiles(self) -> None:
        found = changed(TILES, "image_size=64x96", "score=topk", "tile_score=max", "seam_smoothing=false")
        own = {"image_size": (64, 96), "score": "max", "seam_smoothing": False}
        assert found == {**TILES, **own, "member": {**CORE, "score": "topk"}}
        inner = changed({**TILES, "member": PAIR}, "1.seed=3")
        assert inner["member"]["members"] == [CORE, {**PADIM, "seed": 3}]

    def test_a_class_that_is_registered_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        separate_registry(monkeypatch)

        @register("Mean")
        class Mean:
            def __init__(self, *, grid: int = 8, seed: int = 0) -> None:
                self.grid, self.seed = grid, seed

        found = changed({"type": "BackboneEnsemble", "members": [{"type": "Mean"}, CORE]}, "grid=3", "seed=1")
        assert found["members"] == [{"type": "Mean", "grid": 3, "seed": 1}, {**CORE, "seed": 1}]


@pytest.mark.parametrize(
    ("description", "text", "message"),
    [
        (CORE, "sede=3", "command line: sede is no parameter of PatchCore; did you mean seed"),
        (CORE, "num_nn=3", "command line: num_nn is no parameter of PatchCore; here it is num_neighbors"),
        (CORE, "num_dimensions=3", "num_dimensions is no parameter of PatchCore, but of PaDiM"),
        (CORE, "fusion=max", "but of BackboneEnsemble: give several backbones"),
        (CORE, "stride=3", "but of TiledEnsemble: give tile_size too"),
        (CORE, "tile_score=max", "but of TiledEnsemble: give tile_size too"),
        (PAIR, "xyz=3", "xyz is no parameter of PatchCore or PaDiM; there are: aggregation, "),
        (CORE, "seed=x", 'command line: seed must be a whole number, got "x"'),
        (CORE, "seed=1.5", "seed must be a whole number, got 1.5"),
        (CORE, "resize=big", 'resize must be a whole number, HxW, "auto" or none, got "big"'),
        (CORE, "score=mx", 'score must be "max" or "reweighted" or "topk", got "mx"'),
        (CORE, "compile=perhaps", 'compile must be true or false, got "perhaps"'),
        (PAIR, "2.seed=3", "command line: 2.seed is for member 2, but there are 2, from 0"),
        (PAIR, "0.num_dimensions=3", "0.num_dimensions is no parameter of PatchCore, but of PaDiM"),
        (PAIR, "0.fusion=max", "0.fusion is no parameter of PatchCore"),
        (
            PAIR,
            "seed=[1, 2, 3]",
            "must be a whole number, or a list with one for each of 2 members, got [1, 2, 3]",
        ),
        (TILES, "resize=64", "resize has no effect in tiles: image_size is the size of the image"),
    ],
)
def test_what_is_refused(description: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below, as it is
        changed(description, text)
    assert message in str(caught.value)


def test_names_that_members_do_not_share() -> None:
    assert differing_names({**PAIR, "members": [{**CORE, "seed": 1}, {**CORE, "seed": 2}]}) == {"seed"}
    assert differing_names(CORE) == set()
