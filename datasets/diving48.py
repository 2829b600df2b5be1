"""Diving48: some 17,000 clips of competitive dives in 48 classes that a single frame cannot tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, Split
from inflate3d.data.raw.files import read_json_list, require_file
from inflate3d.data.raw.labelled_videos import RGB, Clip, LabelledVideos
from inflate3d.errors import InputError

_LISTS: dict[str, Split | None] = {"Diving48_V2_train.json": None, "Diving48_V2_test.json": "test"}
_VOCABULARY = "Diving48_vocab.json"


class Diving48(LabelledVideos):
    """Diving48_V2_train.json, Diving48_V2_test.json and Diving48_vocab.json (the corrected lists of 2020), and the
    videos VIDEO_00001.mp4 anywhere below root, such as rgb/.

    The test list becomes the test split; val is taken from the training list by whole source videos. Download: from
    http://www.svcl.ucsd.edu/projects/resound/dataset.html, Diving48_rgb.tar.gz and the three lists.
    """

    base_card = DatasetCard(
        name="diving48",
        media="video",
        title="Diving48",
        modality="rgb",
        url="http://www.svcl.ucsd.edu/projects/resound/dataset.html",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="Li et al., RESOUND: Towards Action Recognition without Representation Bias, ECCV 2018",
        input=RGB,
    )
    holds = "Diving48_V2_train.json, Diving48_V2_test.json, Diving48_vocab.json and the videos"

    def names(self) -> Sequence[str]:
        """The classes of the vocabulary: take-off, somersaults, twists, position: "Back 15som 05Twis FREE"."""
        return self._classes

    def clips(self) -> list[Clip]:
        """The training list, then the test list."""
        return [
            self._clip(entry, split, f"{file} entry {i + 1}")
            for name, split in _LISTS.items()
            for file in [require_file(self.root / name, where="diving48", holds="an official list")]
            for i, entry in enumerate(read_json_list(file, where="diving48"))
        ]

    def _clip(self, entry: Any, split: Split | None, at: str) -> Clip:
        if not isinstance(entry, dict) or not {"vid_name", "label"} <= set(entry):
            raise InputError(f"{at} is {str(entry)[:80]}; expected vid_name and label")
        name, label = str(entry["vid_name"]), entry["label"]
        if not isinstance(label, int) or not 0 <= label < len(self._classes):
            raise InputError(f"{at}: label is {label!r}; expected 0 to {len(self._classes) - 1}")
        return Clip(self.file_of(name, at), label, split, name.rpartition("_")[0], at)

    @cached_property
    def _classes(self) -> Sequence[str]:
        file = require_file(self.root / _VOCABULARY, where="diving48", holds="the vocabulary")
        return [" ".join(map(str, entry)) for entry in read_json_list(file, where="diving48")]

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write two classes: six training clips of three videos, and two test clips."""
        import json

        from inflate3d.data.raw.examples import clip

        (root / "rgb").mkdir(parents=True, exist_ok=True)
        entries = []
        for i in range(8):
            name = f"-mmq0PT-u{i // 2}_{i:05d}"
            (root / "rgb" / f"{name}.mp4").write_bytes(clip(brightens=i % 2 == 1))
            entries.append({"vid_name": name, "label": i % 2, "start_frame": 0, "end_frame": 8})
        contents = {
            _VOCABULARY: [["Back", "15som", "05Twis", "FREE"], ["Forward", "25som", "NoTwis", "PIKE"]],
            "Diving48_V2_train.json": entries[:6],
            "Diving48_V2_test.json": entries[6:],
        }
        for name, content in contents.items():
            (root / name).write_text(json.dumps(content), encoding="utf-8")
        return {"root": str(root), "val_fraction": 0.3}
