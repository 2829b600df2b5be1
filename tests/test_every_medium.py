"""Every medium: what the contract promises of it; a new file in media/ is tested without a new test."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inflate3d.contracts import AbstractDataset, AbstractMedium, Case, DatasetCard, RawSample, medium_of
from inflate3d.data.samples.options import sample_options
from inflate3d.data.samples.views import make_stage
from inflate3d.data.shards.members import check_members, decode_members, encode_sample
from inflate3d.discover import plug_ins
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.inputs import find_cases, media_in, read_case
from inflate3d.sample import IMAGE

NAMES = sorted(n for n, plug_in in plug_ins("media").items() if plug_in.module.startswith("inflate3d.media"))


def raw_files(medium: AbstractMedium, folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and medium.suffix_of(p.name)]


@pytest.fixture(params=NAMES)
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> AbstractDataset:
    """For each medium the first dataset, made from its own example, whose files the medium itself reads."""
    medium = plug_ins("media")[request.param].load()()
    for cls in (p.load() for p in plug_ins("datasets").values() if p.module.startswith("inflate3d.datasets")):
        if cls.base_card.media == request.param:
            arguments = cls.write_example(tmp_path / cls.base_card.name)
            if raw_files(medium, tmp_path):
                return cls(**arguments)
    raise AssertionError(f"no dataset has files of {request.param}, so nothing shows that they can be read")


def first(dataset: AbstractDataset) -> tuple[Case, RawSample]:
    case = dataset.cases()[0]
    return case, dataset.read(case)


def members(dataset: AbstractDataset) -> dict[str, Any]:
    """The first case as a shard gives it."""
    case, raw = first(dataset)
    encoded = encode_sample(raw, dataset.card, key=case.key)
    return decode_members({suffix: memoryview(bytearray(content)) for suffix, content in encoded.items()})


def options(card: DatasetCard) -> dict[str, Any]:
    """The fewest options that the medium takes: what has no default is 4, whatever it means."""
    return {f.name: 4 for f in fields(medium_of(card).options) if f.default is MISSING}


def test_volumes_and_videos_are_found() -> None:
    assert {"volume", "video"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_medium_says_what_it_is_without_torch(name: str) -> None:
    code = (
        "import sys; from inflate3d.discover import find\n"
        f"medium = find('media', {name!r}).load()()\n"
        "assert not {'torch', 'nibabel', 'SimpleITK', 'av'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    medium = plug_ins("media")[name].load()
    assert issubclass(medium, AbstractMedium)
    assert plug_ins("media")[name].summary
    assert is_dataclass(medium.options)
    assert medium.suffixes
    assert all(s.startswith(".") and s == s.lower() for s in medium.suffixes)


def test_no_two_media_take_the_same_files_or_members() -> None:
    media = [plug_ins("media")[name].load() for name in NAMES]
    for claims in ([m.suffixes for m in media], [m.byte_members for m in media]):
        every = [claim for claimed in claims for claim in claimed]
        assert len(every) == len(set(every))


def test_a_sample_passes_the_checks_of_its_medium_and_tells_its_shape(dataset: AbstractDataset) -> None:
    found, card = members(dataset), dataset.card
    check_members("k", found, card)
    record = found["json"]
    assert len(record["shape"]) == 4
    assert record["shape"][0] == len(card.input.channels)
    assert {"spacing_mm", "affine"} <= set(record)


def test_what_is_missing_or_damaged_is_refused_and_never_a_crash(dataset: AbstractDataset) -> None:
    found, card = members(dataset), dataset.card
    for name in found:
        with pytest.raises(InputError, match="sample 'k'"):
            check_members("k", {n: v for n, v in found.items() if n != name}, card)
    for record in (None, [], {"spacing_mm": 5, "num_frames": "x"}):
        with pytest.raises(InputError, match="sample 'k'"):
            check_members("k", {**found, "json": record}, card)
    with pytest.raises(InputError, match="case 'k'"):
        encode_sample(RawSample(), card, key="k")


def test_a_stage_is_a_pure_function_of_members_and_seed(dataset: AbstractDataset) -> None:
    found, card = members(dataset), dataset.card
    for training in (True, False):
        stage = make_stage(card, options(card), training=training)
        sample, again, other = (stage("k", found, seed) for seed in (3, 3, 4))
        view = sample.views[IMAGE]
        assert (view.ndim, len(view), view.dtype) == (4, len(card.input.channels), torch.float32)
        assert view.isfinite().all()
        assert torch.equal(view, again.views[IMAGE])
        assert list(sample.targets) == list(card.targets)
        assert all(torch.equal(v, again.targets[n]) for n, v in sample.targets.items())
        assert training or torch.equal(view, other.views[IMAGE])  # evaluation draws nothing
        place = torch.full_like(view, torch.nan)
        assert torch.equal(stage("k", found, 3, place).views[IMAGE], view)
        size = sample_options(card, options(card)).input_size
        assert size is None or tuple(view.shape[1:]) == size


def test_options_are_checked_by_name(dataset: AbstractDataset) -> None:
    with pytest.raises(InputError, match=r"data\.x\.sample\.colour: unknown key 'colour'"):
        sample_options(dataset.card, {**options(dataset.card), "colour": 1}, where="data.x.sample")
    for name in options(dataset.card):
        with pytest.raises(InputError, match=f"x: {name} missing; {dataset.card.media} needs it"):
            sample_options(dataset.card, {k: v for k, v in options(dataset.card).items() if k != name}, where="x")


def test_a_person_sees_as_many_pictures_as_were_asked_for(dataset: AbstractDataset) -> None:
    medium, (_, raw) = medium_of(dataset.card), first(dataset)
    image = medium.raw_image(raw, 6)
    assert len(image) == len(dataset.card.input.channels)
    mask = np.zeros(image.shape[1:], np.uint8)
    mask[0, 1, 2] = 1
    for shown in (None, mask):
        planes = medium.planes(image, 6, spacing_mm=(2.0, 1.0, 1.0), mask_DHW=shown)
        assert 0 < len(planes) <= 6
        assert len({(plane.axis, plane.index) for plane in planes}) == len(planes)
        slices = medium.planes(image, 6, spacing_mm=(2.0, 1.0, 1.0), mask_DHW=shown, maxima=False)
        assert all(plane.index is not None for plane in slices)
        for plane in planes:
            assert plane.caption
            assert plane.of(image).ndim == (3 if plane.is_colour else 2)
            assert plane.index is None or plane.of_mask(mask).shape == plane.of(image).shape[-2:]


def test_a_raw_file_is_a_case_of_one_medium_and_is_read_as_a_shard_gives_it(
    dataset: AbstractDataset, tmp_path: Path
) -> None:
    medium, card = medium_of(dataset.card), dataset.card
    file = raw_files(medium, tmp_path)[0]
    assert medium.suffix_of(file.name.upper()) == medium.suffix_of(file.name)
    assert medium.suffix_of("thesis.tex") is None
    assert media_in(file) == {dataset.card.media}
    (case,) = find_cases(file, card)
    found, unlabelled = read_case(case, card)
    assert dict(unlabelled.targets) == {}
    assert make_stage(unlabelled, options(card), training=False)(case.key, found, 0).targets == {}


def test_encoding_anew_is_checked_by_name_or_refused(dataset: AbstractDataset) -> None:
    with pytest.raises(InputError, match=r"build\.encode"):
        medium_of(dataset.card).encoding({"colour": 1}, where="build.encode")


def test_a_card_of_another_medium_is_refused_with_the_close_name(dataset: AbstractDataset) -> None:
    with pytest.raises(
        InputError, match=rf"unknown medium '{dataset.card.media}s'; close names: '{dataset.card.media}'"
    ):
        medium_of(replace(dataset.card, media=f"{dataset.card.media}s"))
