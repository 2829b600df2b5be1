"""Something-Something V2: 220,847 clips of hands that do 174 things to objects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, Split
from inflate3d.data.raw.files import read_json, read_json_list, visible
from inflate3d.data.raw.labelled_videos import RGB, Clip, LabelledVideos
from inflate3d.data.raw.text import read_lines
from inflate3d.errors import InputError

_LISTS: dict[str, Split] = {"train": "train", "validation": "val"}


class SSV2(LabelledVideos):
    """20bn-something-something-v2/ID.webm, and labels.json, train.json, validation.json in any folder below root.

    The names of the lists may begin with something-something-v2-, as in the first release. Test clips are used where
    test-answers.csv (ID;label) is there, which came with later releases. To get it: register at
    https://www.qualcomm.com/developer/software/something-something-v-2-dataset, accept the terms for research use,
    download the parts and the labels, join the parts (cat 20bn-something-something-v2-?? | tar zx), unpack the labels.
    """

    base_card = DatasetCard(
        name="ssv2",
        media="video",
        title="Something-Something V2",
        modality="rgb",
        url="https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
        licence="Data License Agreement for research use (Qualcomm)",
        commercial_use=False,
        weights_may_be_published=False,
        citation='Goyal et al., The "something something" video database for learning and evaluating visual common '
        "sense, ICCV 2017, arXiv:1706.04261",
        input=RGB,
    )
    holds = "20bn-something-something-v2/*.webm, labels.json, train.json and validation.json"

    def names(self) -> Sequence[str]:
        """The 174 templates without brackets, in the order of labels.json."""
        return list(self._classes)

    def clips(self) -> list[Clip]:
        """The clips of train and validation, and of test where its answers are there."""
        clips = []
        for part, split in _LISTS.items():
            file = self._list(f"{part}.json")
            for i, entry in enumerate(read_json_list(file, where="ssv2")):
                at = f"{file} entry {i + 1}"
                if not isinstance(entry, dict) or not {"id", "template"} <= set(entry):
                    raise InputError(f"{at} is {str(entry)[:80]}; expected id and template")
                clips.append(self._clip(str(entry["id"]), re.sub(r"[\[\]]", "", str(entry["template"])), split, at))
        answers = self._places("test-answers.csv")
        for line, text in read_lines(answers[0]) if answers else ():
            name, _, label = text.partition(";")
            clips.append(self._clip(name.strip(), label.strip(), "test", f"{answers[0]} line {line}"))
        return clips

    def _clip(self, name: str, label: str, split: Split, at: str) -> Clip:
        if label not in self._classes:
            raise InputError(f"{at}: {label[:80]!r} is no class of labels.json")
        return Clip(f"20bn-something-something-v2/{name}.webm", self._classes[label], split, None, at)

    @cached_property
    def _classes(self) -> dict[str, int]:
        file = self._list("labels.json")
        table = {name: str(value) for name, value in read_json(file, where="ssv2").items()}
        if sorted(table.values()) != sorted(str(i) for i in range(len(table))):
            raise InputError(f"{file}: expected an object of classes and their numbers from 0, without gaps")
        return {name: int(value) for name, value in sorted(table.items(), key=lambda item: int(item[1]))}

    def _list(self, name: str) -> Path:
        if not (found := self._places(name)):
            raise InputError(
                f"ssv2: {self.root} holds no {name} or something-something-v2-{name}; expected {self.holds}"
            )
        return found[0]

    def _places(self, name: str) -> list[Path]:
        patterns = [f"{folder}{name}" for folder in ("", "something-something-v2-", "*/", "*/something-something-v2-")]
        found = [file for pattern in patterns for file in visible(self.root, pattern)]
        if len(found) > 1:
            raise InputError(f"ssv2: both {found[0]} and {found[1]} are {name}; keep one")
        return found

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write four training, two validation and one test clip, and the lists in labels/."""
        import json

        from inflate3d.data.raw.examples import clip

        for folder in ("labels", "20bn-something-something-v2"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        templates = ("Closing [something]", "Opening [something]")
        entries: dict[str, Any] = {"labels": {re.sub(r"[\[\]]", "", t): str(i) for i, t in enumerate(templates)}}
        for i in range(7):
            (root / f"20bn-something-something-v2/{100 + i}.webm").write_bytes(clip(brightens=i % 2 == 1))
            part = "train" if i < 4 else "validation" if i < 6 else "test"
            entry = {"id": str(100 + i), "label": "closing box", "template": templates[i % 2], "placeholders": ["box"]}
            entries.setdefault(part, []).append(entry if part != "test" else {"id": entry["id"]})
        for name, content in entries.items():
            (root / "labels" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        (root / "labels" / "test-answers.csv").write_text("106;Closing something\n", encoding="utf-8")
        return {"root": str(root)}
