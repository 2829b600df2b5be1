"""Publishing a run with its heads: whole segmenters and classifiers, to a folder, the Hub's stand-in and S3."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import inflate3d
import nibabel
import pytest
import torch
from huggingface_hub import ModelCard
from inflate3d.cli.main import main
from inflate3d.errors import InputError
from inflate3d.files import SEAL, sealed
from inflate3d.models import BackboneConfig
from inflate3d.publishing.additions import read_additions
from inflate3d.publishing.from_run import publish_run
from inflate3d.targets import ClassTarget
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import MultiTaskModule, write_config
from inflate3d.training.checkpoints.store import write_checkpoint
from loopback_servers import hub_stand_in, moto_s3
from run_with_heads import CARDS, Run, make_run
from toy_batches import toy_card

PAGE = """
import inflate3d
from huggingface_hub import ModelCard, hf_hub_download
from inflate3d.cli.main import main
page = ModelCard.load("lab/run")
download, predict = page.text.partition("## Try it")[2].partition("```\\n")[2].partition("```")[0].splitlines()
assert download == "hf download lab/run example.nii.gz --local-dir ."
hf_hub_download("lab/run", "example.nii.gz", local_dir=".")  # what that command calls
assert main(predict.split()[1:]) == 0
print(inflate3d.create_segmenter("hf-hub:lab/run@main", pretrained=True).label_names)
print(page.data.library_name)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def published(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outcome = publish_run(run.folder, str(tmp_path_factory.mktemp("out") / "w"), with_heads=True)
    assert outcome.folder is not None
    return outcome.folder


def test_nothing_is_taken_of_a_classifier_of_other_classes(published: Path) -> None:
    card = toy_card("mine", channels=("hu",), target=ClassTarget(("big", "small")))
    task = VolumeClassification(datasets=["mine"])
    config = BackboneConfig(f"local-dir:{published}", pretrained=True)
    with pytest.raises(InputError, match="nothing can be taken of 'scans': its target is another"):
        MultiTaskModule(config, {"size": task}, start_heads={"mine": "scans"}).build({"mine": card})


def logits(run: Run, dataset: str, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        features = run.module.backbone(x, domain=dataset)
        return run.module.heads[run.module.tasks_of[dataset][0]][dataset](features)  # type: ignore[index]


@pytest.mark.slow
def test_a_published_segmenter_loads_whole_with_the_names_of_its_classes(run: Run, published: Path) -> None:
    net = inflate3d.create_segmenter(f"local-dir:{published}", pretrained=True).eval()
    x = torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), logits(run, "organs", x), rtol=1e-4, atol=1e-5)
    assert net.label_names == ["background", "liver", "spleen"]
    assert (net.window, net.input_spec["spacing_mm"]) == ((16, 16, 16), [2.0, 1.0, 1.0])
    assert net.input_spec["sample"] == {"patch_size": [16, 16, 16]}


@pytest.mark.slow
def test_another_number_of_classes_keeps_the_decoder_and_says_so(
    published: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = inflate3d.create_segmenter(f"local-dir:{published}", pretrained=True)
    other = inflate3d.create_segmenter(f"local-dir:{published}", pretrained=True, num_classes=5)
    assert other.eval()(torch.randn(1, 1, 8, 32, 32)).shape == (1, 5, 8, 32, 32)
    assert torch.equal(own.decoder.blocks[0][0].weight, other.decoder.blocks[0][0].weight)
    assert other.label_names == []
    assert "5 classes instead of 3: the last layer is fresh" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["scans", "clips"])
def test_a_classifier_loads_by_its_head_with_its_own_stem_and_statistics(
    run: Run, published: Path, dataset: str
) -> None:
    net = inflate3d.create_model(f"local-dir:{published}", pretrained=True, head=dataset).eval()
    x = torch.randn(2, len(CARDS[dataset].input.channels), 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), logits(run, dataset, x), rtol=1e-4, atol=1e-5)
    assert net.label_names == list(CARDS[dataset].targets["label"].names)
    assert net.input_spec["media"] == CARDS[dataset].media
    features = inflate3d.create_model(f"local-dir:{published}", pretrained=True, norm_domain=dataset, num_classes=0)
    with torch.no_grad():
        torch.testing.assert_close(features.eval()(x), run.module.backbone(x, domain=dataset).pooled)


@pytest.mark.slow
@pytest.mark.parametrize("with_heads", [True, False])
def test_each_domains_weights_state_its_own_input(run: Run, tmp_path: Path, with_heads: bool) -> None:
    publish_run(run.folder, str(tmp_path / "w"), with_heads=with_heads)
    for name, card in CARDS.items():
        net = inflate3d.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True, norm_domain=name, num_classes=0)
        spec, own = net.input_spec, json.loads(json.dumps(card.to_dict()["input"]))
        own["intensity"]["std"] = [0.2] if name == "clips" else own["intensity"]["std"]  # as the run's sample says
        assert {k: spec[k] for k in own} == own
        assert (spec["domain"], spec["media"], spec["modality"]) == (name, card.media, card.modality)
        assert ("crop_size" in spec["sample"]) == (name == "clips")


@pytest.mark.slow
def test_the_first_domains_classifier_is_the_nets_own(run: Run, tmp_path: Path) -> None:
    publish_run(run.folder, str(tmp_path / "w"), domain="clips", with_heads=True)
    net = inflate3d.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True).eval()
    x = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), logits(run, "clips", x), rtol=1e-4, atol=1e-5)
    assert net.label_names == ["jump", "run", "wave", "sit"]
    assert inflate3d.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True, num_classes=7).label_names == []
    card = (tmp_path / "w" / "README.md").read_text()
    assert "pipeline_tag: video-classification" in card


def test_wrong_heads_are_refused_by_name(published: Path) -> None:
    name = f"local-dir:{published}"
    with pytest.raises(InputError, match="unknown head 'scan'; close names: 'scans'"):
        inflate3d.create_model(name, pretrained=True, head="scan")
    with pytest.raises(InputError, match="head='organs' segments; load it by create_segmenter"):
        inflate3d.create_model(name, pretrained=True, head="organs")
    with pytest.raises(InputError, match="unknown segmenter 'scans'"):
        inflate3d.create_segmenter(name, pretrained=True, head="scans")
    with pytest.raises(InputError, match="num_classes is missing"):
        inflate3d.create_segmenter("test_resnet")


def test_the_card_tells_licences_heads_cost_and_how_to_load(run: Run, published: Path, tmp_path: Path) -> None:
    card = (published / "README.md").read_text()
    head = ModelCard(card).data
    assert (head.library_name, head.base_model) == ("inflate3d", "timm/test_resnet")
    assert head.datasets == ["organs", "scans", "clips"]
    assert (head.license, head.license_name, head.pipeline_tag) == ("other", "see-model-card", "image-segmentation")
    assert head.tags == ["3d", "video", "medical-imaging", "timm"]
    assert "Commercial use of these weights: **no** (scans (CC-BY-NC-4.0): commercial use not allowed)" in card
    assert 'create_segmenter("local-dir:PATH", pretrained=True, head="organs")' in card
    assert "conv1.png" in card
    assert "background, liver, spleen" in card
    rows = [{"start": "scratch", "metric": "val/dice", "mean": 0.5, "std": 0.01, "runs": 3}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    publish_run(run.folder, str(tmp_path / "w"), additions=read_additions(results=tmp_path / "rows.json"))
    assert "| scratch | val/dice | 0.5000 |  | 0.0100 | 3 |" in (tmp_path / "w" / "README.md").read_text()
    assert not (tmp_path / "w" / "heads.safetensors").exists()


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_bytes_wherever_the_run_lies_and_went_on(run: Run, tmp_path: Path) -> None:
    copy, starts = tmp_path / "run", [{"time": "2026-01-01T00:00:00+00:00", "device": "cpu"}]
    shutil.copytree(run.folder, copy)
    (complete,) = copy.glob("checkpoints/*/complete.json")
    stated = json.loads(complete.read_text())
    del stated[SEAL]
    complete.write_bytes(sealed({**stated, "time": "2026-01-01T01:30:00+00:00"}))
    for name in ("one", "other"):
        (copy / "environment.json").write_text(json.dumps({"starts": starts}))
        publish_run(copy, str(tmp_path / name), with_heads=True)
        starts.append({"time": "2026-02-01T00:00:00+00:00", "device": "another"})
        os.utime(complete, (2e9, 2e9))
    one, other = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("one", "other"))
    assert one == other
    cost = json.loads(one["config.json"])["training"]["cost"]
    assert cost == {"steps": 7, "device": "cpu", "hours": 1.5}
    assert b"7 optimiser steps on cpu, 1.5 hours" in one["README.md"]


@pytest.mark.slow
def test_the_code_of_the_card_runs(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (published / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    exec(code.replace("local-dir:PATH", f"local-dir:{published}"), {})


def test_the_command_publishes_once_and_a_dry_run_writes_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["publish", str(run.folder), "--output", str(tmp_path / "w"), "--heads"]
    assert main([*command, "--dry-run"]) == 0
    assert "would publish" in (out := capsys.readouterr().out)
    assert "heads.safetensors" in out
    assert not list(tmp_path.iterdir())
    assert main(command) == 0
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "w").iterdir()}
    capsys.readouterr()
    assert main(command) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "w").iterdir()} == before
    assert main(["publish", str(run.folder), "--output", "gs://x/y"]) == 2
    assert "local-dir:PATH, hf-hub:ORG/NAME or s3://BUCKET/DIR" in capsys.readouterr().err


@pytest.mark.slow
def test_s3_gets_the_hashes_last_and_a_failed_upload_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path))
    with moto_s3(monkeypatch) as client:
        import s3fs

        def keys() -> list[str]:
            return [o["Key"] for o in client.list_objects_v2(Bucket="weights").get("Contents", [])]

        original = s3fs.S3FileSystem.put_file

        def failing(self: object, local: str, remote: str, **kwargs: object) -> object:
            if local.endswith("model.safetensors"):
                raise OSError("the network is gone")
            return original(self, local, remote, **kwargs)

        monkeypatch.setattr(s3fs.S3FileSystem, "put_file", failing)
        with pytest.raises(InputError, match=r"the network is gone.*nothing was published"):
            publish_run(run.folder, "s3://weights/nets/run")
        assert keys() == []
        monkeypatch.setattr(s3fs.S3FileSystem, "put_file", original)
        assert publish_run(run.folder, "s3://weights/nets/run", with_heads=True).changed
        written = {o["Key"]: o["LastModified"] for o in client.list_objects_v2(Bucket="weights")["Contents"]}
        assert max(written, key=lambda k: (written[k], k.endswith("SHA256SUMS"))).endswith("SHA256SUMS")
        assert not [k for k in written if ".upload-" in k]
        net = inflate3d.create_segmenter("s3://weights/nets/run", pretrained=True)
        assert net.label_names[1:] == ["liver", "spleen"]
        assert not publish_run(run.folder, "s3://weights/nets/run", with_heads=True).changed


@pytest.mark.slow
def test_the_hub_gets_one_commit_and_a_failed_one_leaves_nothing(
    run: Run, tmp_path: Path, platform_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The Hub is a stand-in; its client is the real one, which reads its environment when it is imported."""
    command = ["publish", str(run.folder), "--output", "hf-hub:lab/run", "--heads"]
    with hub_stand_in() as (url, handler), pytest.MonkeyPatch.context() as patch:
        for name, value in {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hub"), "HF_TOKEN": "none"}.items():
            patch.setenv(name, value)
        handler.faults[:] = ["the Hub is down"] * 99
        failed = platform_command(*command, cold=True)
        assert failed.returncode == 2, failed.stderr
        assert "nothing was published" in failed.stderr
        assert handler.commits["lab/run"] == [{}]
        handler.faults.clear()
        first = platform_command(*command, cold=True)
        assert first.returncode == 0, first.stderr
        (_, tree) = handler.commits["lab/run"]
        assert {"model.safetensors", "heads.safetensors", "SHA256SUMS", "README.md"} <= set(tree)
        assert 'create_model("hf-hub:lab/run"' in tree["README.md"].decode()
        again = platform_command(*command, cold=True)
        assert "nothing changed" in again.stdout, again.stderr
        assert len(handler.commits["lab/run"]) == 2
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PAGE], capture_output=True, cwd=tmp_path, text=True
        )
        assert done.stdout.splitlines()[-2:] == ["['background', 'liver', 'spleen']", "inflate3d"], done.stderr
        mask = nibabel.load(tmp_path / "answer" / "example.nii.gz")
        assert mask.shape == (16, 16, 16)
        assert mask.header.get_zooms() == (1, 1, 2)


@pytest.mark.slow
def test_private_weights_leave_no_local_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    (state_file,) = (tmp_path / "run").rglob("state.ckpt")
    state = torch.load(state_file, weights_only=True)
    state["cards"]["clips"]["weights_may_be_published"] = False
    write_checkpoint(
        tmp_path / "run" / "checkpoints", 8, lambda p: torch.save(state, p), score=0.9, metrics={"val/score": 0.9}
    )
    for place in ("hf-hub:lab/run", "s3://weights/run"):
        with pytest.raises(InputError, match="forbids publishing weights"):
            publish_run(tmp_path / "run", place)
    assert publish_run(tmp_path / "run", str(tmp_path / "w")).is_private
    assert (tmp_path / "w" / "PRIVATE").exists()


@pytest.mark.slow
def test_weights_inherit_the_licences_of_what_they_began_with(run: Run, published: Path, tmp_path: Path) -> None:
    task = VolumeClassification(datasets=["mine"])
    mine = replace(toy_card("mine", label=ClassTarget(("a", "b"))), licence="CC0-1.0")
    name = f"local-dir:{published}"
    module = MultiTaskModule(BackboneConfig(name, pretrained=True), {"mine": task}).build({"mine": mine})
    tasks = {"mine": {"class_path": "VolumeClassification", "init_args": {"datasets": ["mine"]}}}
    config = {"model": {"backbone": {"name": name, "pretrained": True}, "tasks": tasks}}
    write_config(tmp_path / "run", {**config, "data": {"datasets": {"mine": {"batch_size": 1}}}})
    state: dict[str, object] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(state)
    write_checkpoint(tmp_path / "run" / "checkpoints", 1, lambda p: torch.save(state, p), score=None, metrics={})
    publish_run(tmp_path / "run", str(tmp_path / "w"), with_heads=True)
    card = (tmp_path / "w" / "README.md").read_text()
    assert "Commercial use of these weights: **no** (scans (CC-BY-NC-4.0)" in card
    assert inflate3d.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True).label_names == ["a", "b"]
