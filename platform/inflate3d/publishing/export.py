"""publish: an inflated net, or a run's backbone, becomes a directory that anyone can load."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inflate3d.errors import InputError
from inflate3d.files import file_sha256
from inflate3d.models.filters import draw_filters
from inflate3d.models.input_contract import contract_of_2d
from inflate3d.models.publication.heads import is_per_voxel
from inflate3d.models.publication.layout import (
    CARD,
    COLOUR_KEY,
    CONFIG,
    EXAMPLE,
    FORMAT,
    HEADS,
    PICTURE,
    PRIVATE,
    REPLAY,
    SUMS,
    WEIGHTS,
)
from inflate3d.models.publication.replay import replay_features
from inflate3d.models.publication.schema import check_config
from inflate3d.models.spec import NetSpec
from inflate3d.nn.stems import COLOUR_PART
from inflate3d.publishing.as_it_is import twin_of, unwrapped
from inflate3d.publishing.card import render_card
from inflate3d.publishing.contents import Contents
from inflate3d.publishing.delivery import deliver, is_there
from inflate3d.publishing.destination import Destination, parse_destination
from inflate3d.publishing.example_input import example_of
from inflate3d.publishing.licences import may_be_published
from inflate3d.publishing.precision import Precision, rounded, stored


@dataclass(frozen=True)
class Outcome:
    """The outcome of a publication. changed: False if the same files were already there; files: sizes in bytes.

    loader: the function of inflate3d that loads it with the head of its own dataset; create_segmenter for a decoder.
    """

    address: str
    folder: Path | None
    changed: bool
    is_private: bool
    files: dict[str, int]
    loader: str = "create_model"


def publish(
    model: nn.Module,
    destination: str,
    *,
    input_spec: Mapping[str, Any] | None = None,
    norm: str = "shared",
    norm_domains: Mapping[str, str] | None = None,
    extra_tensors: Mapping[str, Tensor] | None = None,
    training: Mapping[str, Any] | None = None,
    precision: Precision = "float32",
) -> Path | str:
    """Write a net made by create_model to "local-dir:path", "hf-hub:org/name" or "s3://bucket/dir".

    Returns the folder, or the address where it is not local. input_spec: the contract that the weights expect (axes,
    channels, spacing_mm, orientation, intensity). norm_domains: each domain and its stem; extra_tensors: their
    statistics and stems. training: what the card says about training (data, metrics, steps). Equal content is left
    unchanged; an older publication is replaced; a folder that holds anything else is refused. Weights from data whose
    card forbids publishing are marked private and allowed only in a local folder; a net that was loaded from a
    publication keeps its data, contract and source. precision "float16" halves the file; loaded, the weights are
    float32 again. The net itself stays as it was: device, modes and weights.
    """
    contents = Contents(
        net=model,
        input_spec=input_spec,
        norm=norm,
        norm_domains=norm_domains or {},
        extra_tensors=extra_tensors or {},
        training=training or {},
    )
    outcome = export(contents, destination, precision=precision)
    if outcome.is_private:
        warnings.warn(f"{outcome.folder} is marked private: a dataset's card forbids publishing weights", stacklevel=2)
    return outcome.folder or outcome.address


def export(
    contents: Contents,
    destination: str,
    *,
    precision: Precision = "float32",
    name: str | None = None,
    pages: Mapping[str, bytes] | None = None,
    dry_run: bool = False,
) -> Outcome:
    """As publish, with all that contents hold; dry_run: everything is made and compared, but nothing is delivered.

    name: the short name that an index gives the publication, for the card's loading lines. pages: further files, listed
    in training["reports"].
    """
    model = unwrapped(contents.net)
    place = parse_destination(destination)
    training = _with_ancestors(contents.training, model)
    is_private = not may_be_published(training.get("data", [])) or _before(model).get("private", False)
    refuse_private(is_private, place)
    twin = twin_of(model, norm=contents.norm)
    config = _config_of(
        model,
        twin.net_spec,  # type: ignore[arg-type]
        input=contents.input_spec,
        inputs=contents.inputs,
        classes=contents.classes,
        norm=contents.norm,
        norm_domains=contents.norm_domains,
        heads=contents.heads,
        precision=precision,
        private=is_private,
        training=training,
    )
    tensors = stored({**twin.state_dict(), **_colour_part(model), **contents.extra_tensors}, precision)
    as_loaded = rounded(twin, precision)

    def write(staging: Path) -> None:
        _save(tensors, staging / WEIGHTS)
        if contents.head_tensors:
            _save(stored(contents.head_tensors, precision), staging / HEADS)
        save_file(_replay(as_loaded), staging / REPLAY)
        draw_filters(as_loaded, staging / PICTURE)
        count = sum(p.numel() for p in as_loaded.parameters())
        finish(staging, config, card_address(place, name), parameters=count, pages=pages or {})

    files, changed = deliver_whole(place, write, dry_run=dry_run)
    return Outcome(place.address, place.folder, changed, is_private, files, loader_of(config))


def _config_of(model: Any, spec: NetSpec, **stated: Any) -> dict[str, Any]:
    """Return config.json: what is stated, None aside, and what a net says of itself. InputError for what cannot be."""
    config = {
        "format": FORMAT,
        "architecture": f"inflate3d/{spec.name}",
        "net": spec.to_dict(),
        "input": _contract_of(model, spec.in_chans),
        "classes": getattr(model, "label_names", None) or None,
        "source_weights": source_weights(model),
        "versions": {name: version(name) for name in ("inflate3d", "torch", "timm")},
        **{key: value for key, value in stated.items() if value is not None},
    }
    config = json.loads(json.dumps(config))
    check_config(config, "this net's config.json")
    return config


def _before(model: Any) -> Mapping[str, Any]:
    """Return the config of the publication that a net was loaded from; {} where there was none."""
    return getattr(model, "published", None) or {}


def _colour_part(model: Any) -> dict[str, Tensor]:
    """Return what a net of grey was loaded with for clips of colours."""
    return {COLOUR_KEY: model.colour_part} if hasattr(model, COLOUR_PART) else {}


def _with_ancestors(training: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Add the data of the publication that a net came from: their licences apply to these weights too."""
    own = list(training.get("data", []))
    names = {card["name"] for card in own}
    data = own + [card for card in _before(model).get("training", {}).get("data", []) if card["name"] not in names]
    return {**training, "data": data} if data else dict(training)


def _contract_of(model: Any, in_chans: int) -> dict[str, Any]:
    """Return what input a net's weights expect: that of its publication, or of the 2D net."""
    told = {k: v for k, v in model.input_spec.items() if k not in ("plan", "inflation", "versions")}
    is_published = bool(_before(model)) and len(told["channels"]) == in_chans
    return told if is_published else contract_of_2d(model, in_chans)


def refuse_private(is_private: bool, place: Destination) -> None:
    """InputError where weights that may not be published would leave this machine."""
    if is_private and place.kind != "local":
        raise InputError(
            f"--output {place.address}: the card of a dataset forbids publishing weights trained on it; "
            "they may only go to a local folder, marked private: local-dir:PATH"
        )


def card_address(place: Destination, name: str | None) -> str:
    """Return the address in a card's loading lines. A local folder may be moved, so its card states no path."""
    return name or ("local-dir:PATH" if place.kind == "local" else place.address)


def loader_of(config: Mapping[str, Any]) -> str:
    """Return the function of inflate3d that loads the publication with the head of its own dataset."""
    own = own_heads(config)
    return "create_segmenter" if any(is_per_voxel(head) for head in own) else "create_model"


def own_heads(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the heads of the publication's own dataset."""
    return [head for head in config["heads"].values() if head["dataset"] == config["input"].get("domain")]


def deliver_whole(
    place: Destination, write: Callable[[Path], None], *, dry_run: bool = False
) -> tuple[dict[str, int], bool]:
    """Let `write` make the files in a staging folder, and deliver them; return their sizes, and whether new."""
    with _staging(place) as staging:
        write(staging)
        files = {file.name: file.stat().st_size for file in sorted(staging.iterdir())}
        changed = not is_there(staging, place)
        if changed and not dry_run:
            deliver(staging, place)
    return files, changed


@contextmanager
def _staging(place: Destination) -> Iterator[Path]:
    """A new folder to write in: beside a local destination, else in the system's temporary folder."""
    if place.folder is not None:
        place.folder.parent.mkdir(parents=True, exist_ok=True)
    beside = None if place.folder is None else place.folder.parent
    prefix = "inflate3d-" if place.folder is None else f".tmp-{place.folder.name}-"
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=beside))
    path.chmod(0o755)  # it becomes the publication
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def finish(
    folder: Path, config: Mapping[str, Any], address: str, *, parameters: int, pages: Mapping[str, bytes]
) -> None:
    """Write the files besides weights, replay and picture: config, card, example, pages and hashes."""
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    picture = PICTURE if (folder / PICTURE).is_file() else None
    example = example_of(config)
    if example is not None:
        (folder / EXAMPLE).write_bytes(example[1])
    tried = None if example is None else example[0]
    card = render_card(config, parameters=parameters, address=address, picture=picture, example=tried)
    (folder / CARD).write_text(card, encoding="utf-8")
    for name, page in pages.items():
        (folder / name).write_bytes(page)
    if config["private"]:
        (folder / PRIVATE).write_text("Trained on data whose card forbids publishing weights.\n", encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes files that only the owner can read
    lines = [f"{file_sha256(file)}  {file.name}" for file in sorted(folder.iterdir())]
    (folder / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors; those that share memory (tied weights) each in full, since the format knows no ties."""
    seen, whole = set[int](), {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        whole[name] = value.clone() if place in seen else value
        seen.add(place)
    save_file(whole, file, {"format": "pt"})


def _replay(model: Any) -> dict[str, Tensor]:
    plan, spec = model.plan, model.net_spec
    height, width = model.trace_size  # the smallest size that the net is known to take
    depth = max(8, plan.min_depth)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, spec.in_chans, depth, height, width, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums depend on the number of threads, and the same net must give the same bytes
    try:
        with torch.no_grad():
            features = replay_features(model.eval(), x)
    finally:
        torch.set_num_threads(threads)
    return {"input": x, "features": features.contiguous()}


def source_weights(model: nn.Module) -> dict[str, Any] | None:
    """Return the 2D weights that a net came from: name, licence, origin; None for random ones."""
    if hasattr(model, "source_weights"):
        return model.source_weights  # type: ignore[return-value]
    if "source_weights" in _before(model):
        return _before(model)["source_weights"]  # type: ignore[no-any-return]
    spec, cfg = model.net_spec, getattr(model, "pretrained_cfg", None) or {}
    if not getattr(model, "is_from_2d_weights", False):
        return None
    return {"name": spec.name, "licence": cfg.get("license"), "origin": cfg.get("origin_url") or cfg.get("hf_hub_id")}  # type: ignore[union-attr]
