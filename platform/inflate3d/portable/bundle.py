"""What a MONAI bundle says: configs/metadata.json, configs/inference.json, LICENSE and docs/README.md of a segmenter.

Sources: MONAI's bundle specification (docs.monai.io/en/stable/mb_specification.html) and the transforms of MONAI 1.6.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from inflate3d.contracts import AbstractTarget
from inflate3d.errors import InputError
from inflate3d.models.input_contract import intensity_of
from inflate3d.portable.part import Part
from inflate3d.publishing.card import describe_intensity
from inflate3d.publishing.licences import commercial_use, hub_licence

METADATA, INFERENCE = "configs/metadata.json", "configs/inference.json"
NET, WEIGHTS = "models/model.ts", "models/model.pt"
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
TRIED_WITH = {"monai": "1.6.1", "pytorch-ignite": "0.5.5", "nibabel": "5.4.2"}
"""The versions that have run such a bundle."""
_FORMATS, _MODALITIES = {"ct": "hounsfield"}, {"ct": "CT", "mri": "MR"}


def bundle_files(part: Part, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of a bundle by their paths. InputError for what gives no label map of windows."""
    if "window" not in facts or not facts.get("names"):
        raise InputError(
            f"{facts['model']} gives {facts['gives']}; a MONAI bundle is written of a published segmenter. "
            "Name one by --dataset, or take another --format"
        )
    legal = _legal(part.published, facts)
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    told: dict[str, Any] = {"facts": facts, "legal": legal, "labels": _labels(facts), "versions": TRIED_WITH}
    told["intensity"] = describe_intensity(facts["input"].get("intensity"))
    return {
        METADATA: json.dumps(_metadata(part, facts, legal), indent=4) + "\n",
        INFERENCE: json.dumps(_inference(facts), indent=4) + "\n",
        "LICENSE": pages.get_template("bundle_licence.jinja").render(told),
        "docs/README.md": pages.get_template("bundle_readme.jinja").render(told),
    }


def input_channels(facts: Mapping[str, Any]) -> list[str]:
    """Return the channels that a user gives; one grey channel that a net repeats is one."""
    channels = list(facts["input"]["channels"])
    return channels[:1] if len(set(channels)) == 1 else channels


def _labels(facts: Mapping[str, Any]) -> dict[str, int]:
    return AbstractTarget.from_dict(facts["target"]).written


def _legal(published: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    data, source = published.get("training", {}).get("data", []), published.get("source_weights")
    licence, has_source = (source or {}).get("licence"), source is not None
    allowed, why = commercial_use(data, licence, has_source=has_source)
    return {
        "data": data,
        "source": source,
        "private": bool(facts.get("private")),
        "licence": hub_licence(data, licence, has_source=has_source),
        "commercial": f"{'yes' if allowed else 'no'} ({why})",
    }


def _metadata(part: Part, facts: Mapping[str, Any], legal: Mapping[str, Any]) -> dict[str, Any]:
    names, training = ", ".join(facts["names"]), part.published.get("training", {})
    modality = str(facts["input"].get("modality", "n/a"))
    citations = [card["citation"] for card in [*legal["data"], legal["source"] or {}] if card.get("citation")]
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"written by inflate3d {version('inflate3d')}"},
        "monai_version": TRIED_WITH["monai"],
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: v for name, v in TRIED_WITH.items() if name != "monai"},
        "name": f"{facts['model']}, {facts['head']}",
        "task": f"Segmentation of {modality} volumes: {names}",
        "description": f"{facts['model']}: a 2D net inflated to 3D with a decoder for {facts['gives']}. The network "
        "takes normalised volumes of any size and gives the probability of each answer at each voxel.",
        "authors": "the publishers of the weights",
        "copyright": "see LICENSE",
        "data_source": "; ".join(card["url"] for card in legal["data"] if card.get("url")),
        "data_type": "nibabel",
        "image_classes": f"{', '.join(input_channels(facts))}; {describe_intensity(facts['input'].get('intensity'))}",
        "pred_classes": ", ".join(f"{value}: {name}" for name, value in _labels(facts).items()),
        "eval_metrics": dict(training.get("metrics", {})),
        "intended_use": "Checked only on the data of docs/README.md. Not a medical device.",
        "references": citations,
        "network_data_format": {"inputs": {"image": _image(facts)}, "outputs": {"pred": _pred(facts)}},
        "inflate3d": dict(facts),
    }


def _image(facts: Mapping[str, Any]) -> dict[str, Any]:
    modality, channels = str(facts["input"].get("modality")), input_channels(facts)
    kind = {"format": _FORMATS.get(modality, "magnitude"), "modality": _MODALITIES.get(modality, modality)}
    return {"type": "image", **kind, **_tensor(channels), "value_range": []}


def _pred(facts: Mapping[str, Any]) -> dict[str, Any]:
    kind = {"format": "classes" if facts["target"].get("regions") else "labels", "modality": "n/a"}
    return {"type": "image", **kind, **_tensor(facts["names"]), "value_range": [0, 1]}


def _tensor(names: list[str]) -> dict[str, Any]:
    return {
        "num_channels": len(names),
        "spatial_shape": ["*", "*", "*"],
        "dtype": "float32",
        "is_patch_data": False,
        "channel_def": {str(i): name for i, name in enumerate(names)},
    }


def _inference(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of `python -m monai.bundle run`: files in dataset_dir to label maps in output_dir."""
    channels = len(input_channels(facts))
    wanted, case = "*.nii*", "{'image': p}"
    if channels > 1:
        files = f"[p.replace('_0000.nii', f'_{{i:04d}}.nii') for i in range({channels})]"
        wanted, case = "*_0000.nii*", f"{{'image': {files}}}"
    return {
        "imports": ["$import functools", "$import glob"],
        "bundle_root": ".",
        "dataset_dir": "images",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": f"$torch.jit.load(@bundle_root + '/{NET}', map_location=@device)",
        "network": "$@network_def.to(@device).eval()",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(facts)},
        "dataset": {
            "_target_": "Dataset",
            "data": f"$[{case} for p in sorted(glob.glob(@dataset_dir + '/{wanted}'))]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(facts)},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _preprocessing(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the transforms that read a file as the input contract says: orientation, spacing, intensity."""
    contract, intensity = facts["input"], intensity_of(facts["input"])
    assert intensity is not None, "a head's own contract states its intensity"
    steps = [_on("image", "LoadImaged"), _on("image", "EnsureChannelFirstd")]
    if contract.get("orientation"):
        steps.append(_on("image", "Orientationd", axcodes=contract["orientation"], labels=None))
    if contract.get("spacing_mm"):
        x_y_z = list(contract["spacing_mm"])[::-1]
        steps.append(_on("image", "Spacingd", pixdim=x_y_z, mode="bilinear", scale_extent=True))
    if intensity.mode == "zscore":
        return [*steps, _on("image", "NormalizeIntensityd", channel_wise=True)]
    low, high = intensity.window
    scaled = _on("image", "ScaleIntensityRanged", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)
    count = len(input_channels(facts))
    mean, std = (list(v) if len(v) == count else list(v[:1]) * count for v in (intensity.mean, intensity.std))
    return [*steps, scaled, _on("image", "NormalizeIntensityd", subtrahend=mean, divisor=std, channel_wise=True)]


def _postprocessing(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the transforms from probabilities to a label map of the input's grid in a file of its name."""
    values = list(_labels(facts).values())
    if facts["target"].get("regions"):
        written = "torch.where(p[r[0] : r[0] + 1] > 0.5, float(r[1]), m)"
        func = f"$lambda p: functools.reduce(lambda m, r: {written}, enumerate({values}), torch.zeros_like(p[:1]))"
        steps = [_on("pred", "Lambdad", func=func)]
    else:
        steps = [_on("pred", "AsDiscreted", argmax=True)]
        if values != list(range(len(values))):
            steps.append(_on("pred", "MapLabelValued", orig_labels=list(range(len(values))), target_labels=values))
    back = {"transform": "@preprocessing", "orig_keys": "image", "nearest_interp": True, "to_tensor": True}
    files = {"output_dir": "@output_dir", "output_postfix": "", "output_dtype": "$numpy.uint8"}
    return [
        *steps,
        _on("pred", "Invertd", **back),
        _on("pred", "SaveImaged", **files, separate_folder=False, resample=False),
    ]


def _on(key: str, name: str, /, **options: Any) -> dict[str, Any]:
    return {"_target_": name, "keys": key, **options}
