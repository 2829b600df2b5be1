"""Transfer: who may see what, choices before the test, intervals, probes, resuming, and the report."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from inflate3d.cli.main import main
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.msd import MSD
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.evaluation.transfer import cells, probes
from inflate3d.evaluation.transfer import study as run
from inflate3d.evaluation.transfer.arms import Arm, arms_for
from inflate3d.evaluation.transfer.build import build_module
from inflate3d.evaluation.transfer.cells import Cell, CellRunner, groups_of
from inflate3d.evaluation.transfer.features import FeatureCache, origin_of
from inflate3d.evaluation.transfer.finetune import answer, fine_tune
from inflate3d.evaluation.transfer.held_out import AnswerBook, Answers
from inflate3d.evaluation.transfer.holdout import Listed, carve, labelled_share
from inflate3d.evaluation.transfer.intervals import score_of
from inflate3d.evaluation.transfer.protocol import Protocol
from inflate3d.evaluation.transfer.report import render_overview, render_report
from inflate3d.evaluation.transfer.study import RESULTS, run_transfer
from inflate3d.evaluation.transfer.summary import summarise
from inflate3d.evaluation.transfer.target import Target
from inflate3d.models import BackboneConfig
from inflate3d.nn.recalibrate import recalibrating
from inflate3d.publishing.additions import read_additions
from inflate3d.training.run.lock import one_writer

SHAPES = Protocol(
    "shapes",
    "volume_classification",
    modes=("probe", "finetune"),
    fractions=(0.5,),
    seeds=(0,),
    steps=2,
    batch_size=4,
    learning_rates=(1e-3,),
    val_fraction=0.2,
    recalibration_batches=2,
)
ARMS = [
    Arm(name, BackboneConfig("test_resnet", stems={"mask": 1}, norm="shared", inflation=taps))
    for name, taps in (("scratch", "random"), ("ours", "center"))
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    build_shards(Toy(kind="volume_classification", num_train=30, num_val=9, size=16), root / "shapes", progress=False)
    build_shards(Toy(kind="volume_segmentation", num_train=6, num_val=2, size=16), root / "seg", progress=False)
    return root


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A whole transfer of two arms: (output folder, result, the cells that were run)."""
    output, ran = tmp_path_factory.mktemp("transfer"), []
    result = run_transfer(ARMS, Target(root, SHAPES), output, report=lambda cell, *_: ran.append(cell))
    return output, result, ran


@pytest.fixture(scope="module", autouse=True)
def _quick():
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "PENALTIES", (1.0, 0.01))
        yield


def listed(count: int, *, classes: int = 3, group_of=lambda i: f"g{i}") -> list[Listed]:
    return [Listed(f"k{i}", (0, i), i % classes, group_of(i)) for i in range(count)]


# -------------------------------------------------------------------------------------------------- who may see what


def test_the_choice_split_holds_whole_groups_and_every_class_and_repeats_under_its_seed():
    samples = listed(60, group_of=lambda i: f"scene{i // 6}")
    fit_, choice = carve(samples, val_fraction=0.2, seed=3)
    assert {s.group for s in fit_}.isdisjoint(s.group for s in choice)
    assert {s.label for s in fit_} == {s.label for s in choice} == {0, 1, 2}
    assert sorted(s.key for s in (*fit_, *choice)) == sorted(s.key for s in samples)
    assert [s.key for s in carve(samples[::-1], val_fraction=0.2, seed=3)[1]] == [s.key for s in choice[::-1]]
    assert carve(samples, val_fraction=0.2, seed=4)[1] != choice


def test_shares_of_the_labels_are_nested_and_hold_every_class():
    samples = listed(300)
    few, more = (labelled_share(samples, f, seed=1) for f in (0.01, 0.1))
    assert [sum(s.label == k for s in few) for k in range(3)] == [1, 1, 1]
    assert [sum(s.label == k for s in more) for k in range(3)] == [10, 10, 10]
    assert {s.key for s in few} < {s.key for s in more}
    assert labelled_share(samples, 1.0, seed=1) == samples
    assert labelled_share(samples, 0.1, seed=2) != more


def test_training_streams_hold_the_samples_they_were_given_and_no_others(root):
    target = Target(root, SHAPES)
    picked = target.labelled(0.5, 0)
    batches = target.train_batches(picked, seed=0)
    seen = [key for _ in range(3 * math.ceil(len(picked) / 4)) for key in next(batches).keys]
    assert set(seen) == {s.key for s in picked}
    assert [k for b in target.batches(target.choice, "train") for k in b.keys] == [s.key for s in target.choice]


def test_learning_rates_are_chosen_on_the_choice_samples_and_the_test_is_read_once_after(root, tmp_path, monkeypatch):
    target = Target(root, replace(SHAPES, modes=("finetune",), learning_rates=(1e-3, 1e-2), seeds=(0, 1)))
    read = []

    class Trained:
        backbone = torch.nn.Identity()

        def __init__(self, rate):
            self.rate = rate

    def stub_answer(module, _, samples, split):
        read.append((split, [s.key for s in samples]))
        return Answers(["a"], {"accuracy": 10 * module.rate}, {"accuracy": [1.0]}, [[1.0]], [0])

    monkeypatch.setattr(cells, "fine_tune", lambda *_, learning_rate, **__: Trained(learning_rate))
    monkeypatch.setattr(cells, "answer", stub_answer)
    runner = CellRunner(ARMS[:1], target, tmp_path)
    for group in groups_of(ARMS[:1], target):
        runner.run(group, lambda *_: None)
    choice, test = [s.key for s in target.choice], [s.key for s in target.test]
    assert read == [("train", choice)] * 2 + [("val", test)] * 2
    record = runner.read(Cell("scratch", "finetune", 0.5, 1))
    assert record["chosen"]["setting"] == 1e-2
    assert record["choice"]["own"] == {"0.001": 0.01, "0.01": 0.1}


# ------------------------------------------------------------------------------------------------------- features


def test_recalibration_takes_the_mean_over_batches_and_leaves_weights_and_modes(root):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm3d(2)

        def forward(self, image):
            return self.norm(image)

    net = Net().train()
    images = [torch.randn(3, 2, 2, 2, 2) * (i + 1) + i for i in range(4)]
    weights = net.norm.weight.clone()
    with recalibrating(net):
        for image in images:
            net(image)
    expected = torch.stack([i.mean((0, 2, 3, 4)) for i in images]).mean(0)
    variance = torch.stack([i.transpose(0, 1).flatten(1).var(1) for i in images]).mean(0)
    assert torch.allclose(net.norm.running_mean, expected, atol=1e-6)
    assert torch.allclose(net.norm.running_var, variance, atol=1e-5)
    assert torch.equal(net.norm.weight, weights)
    assert net.norm.training
    assert net.norm.momentum == 0.1


def test_features_are_computed_once_for_the_same_content(root, tmp_path, monkeypatch):
    target = Target(root, SHAPES)
    backbone = build_module(ARMS[0], target, seed=0).backbone
    cache, parts = FeatureCache(tmp_path), {"choice": (target.choice, "train")}
    first = cache.features(backbone, target, parts, origin=origin_of(backbone))["choice"]
    monkeypatch.setattr(FeatureCache, "_compute", lambda *_: pytest.fail("computed again"))
    again = FeatureCache(tmp_path).features(backbone, target, parts, origin=origin_of(backbone))["choice"]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["target"].tolist() == [s.label for s in target.choice]
    before = origin_of(backbone)
    with torch.no_grad():
        next(backbone.parameters()).view(-1)[0] += 1e-3
    assert origin_of(backbone) != before


# ------------------------------------------------------------------------------------------------------ the whole


def test_a_transfer_runs_every_cell_and_tells_the_paired_difference(finished):
    _, result, ran = finished
    assert {(c.arm, c.mode) for c in ran} == {(a, m) for a in ("scratch", "ours") for m in ("probe", "finetune")}
    assert result["cells"] == {"finished": 4, "of": 4}
    rows = {(r["mode"], r["arm"]): r for r in result["rows"]}
    for (mode, arm), row in rows.items():
        other = rows[mode, "scratch" if arm == "ours" else "ours"]
        difference = row["against"][other["arm"]]["value"]
        assert difference == pytest.approx(row["value"] - other["value"], abs=1e-9)
        assert row["low"] <= row["value"] <= row["high"]
        assert row["samples"] == 9
    assert result["splits"]["fit"] + result["splits"]["choice"] == 30
    assert len(result["splits"]["choice_keys"]) == result["splits"]["choice"]


@pytest.mark.slow
def test_the_same_command_runs_nothing_again_and_more_seeds_add_only_theirs(finished, root, tmp_path, monkeypatch):
    output, result, _ = finished
    monkeypatch.setattr(run, "write_result", lambda *_: None)  # its plots cost more than the rest
    output = shutil.copytree(output, tmp_path / "copy")
    again = run_transfer(ARMS, Target(root, SHAPES), output, report=lambda *_: pytest.fail("ran again"))
    assert again["rows"] == result["rows"]
    more, ran = replace(SHAPES, modes=("probe",), seeds=(0, 1)), []
    run_transfer(ARMS, Target(root, more), output, report=lambda cell, *_: ran.append(cell))
    assert {(c.arm, c.seed) for c in ran} == {("scratch", 1), ("ours", 1)}


@pytest.mark.slow
def test_a_second_start_over_one_output_is_refused_but_parts_go_on_side_by_side(root, tmp_path):
    from inflate3d.data.shards.parts import Part

    target = Target(root, replace(SHAPES, modes=("knn",)))
    with one_writer(tmp_path, name="writer-1-of-2.lock"):
        run_transfer(ARMS, target, tmp_path, part=Part(2, 2))
        with pytest.raises(InputError, match=r"this very process.* --output ANOTHER_FOLDER"):
            run_transfer(ARMS, target, tmp_path, part=Part(1, 2))
    with one_writer(tmp_path), pytest.raises(InputError, match="this very process"):
        run_transfer(ARMS, target, tmp_path)


def test_cells_of_another_protocol_or_start_are_refused_by_name(finished, root):
    output, _, _ = finished
    with pytest.raises(InputError, match=r"scratch-probe-0\.5-0\.json: was measured with other settings"):
        run_transfer(ARMS, Target(root, replace(SHAPES, steps=3)), output)
    other = [replace(ARMS[0], backbone=replace(ARMS[0].backbone, inflation="mean"))]
    with pytest.raises(InputError, match="give another --output"):
        run_transfer(other, Target(root, SHAPES), output)


def test_answers_that_are_all_but_sure_keep_their_interval(root):
    target = Target(root, replace(SHAPES, metric="auroc"))
    classes = len(target.target.names)
    labels = torch.arange(40) % classes
    first = torch.linspace(0, 1, 40) * torch.where(labels == 0, 1e-7, 1e-8)  # sure of the others, and yet in an order
    others = ((1 - first) / (classes - 1))[:, None].expand(-1, classes - 1)
    book = AnswerBook(target)
    book.add([str(i) for i in range(40)], torch.cat([first[:, None], others], 1), labels)
    record = json.loads(json.dumps(book.close().to_dict()))
    assert score_of("auroc", [record]) is not None


def test_the_report_needs_nothing_but_itself(finished):
    output, result, _ = finished
    page = (output / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", page) == []
    assert page.count("data:image/png;base64,") == 2
    assert (output / "probe.png").read_bytes().startswith(b"\x89PNG")
    for row in result["rows"]:
        assert f"<b>{row['value']:.3f}</b>" in page


def test_the_report_is_written_anew_from_its_numbers_and_damage_is_named(finished, tmp_path, capsys):
    output, result, _ = finished
    (tmp_path / "transfer.json").write_text(json.dumps(result))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").read_bytes() == (output / "report.html").read_bytes()
    for content, said in (("{", "damaged"), ('{"format": "x/9"}', "format is 'x/9'")):
        (tmp_path / "transfer.json").write_text(content)
        assert main(["report", str(tmp_path)]) == 2
        assert said in capsys.readouterr().err


def test_the_overview_holds_every_study_and_needs_nothing_but_itself(finished):
    _, result, _ = finished
    page = render_overview({"first": result, "second": result})
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page) == []
    assert page.count("data:image/png;base64,") == 4
    assert re.findall(r'id="(\w+)"', page) == ["first", "second"]
    for row in result["rows"]:
        assert page.count(f"<b>{row['value']:.3f}</b>") >= 2


def test_the_report_of_several_architectures_has_their_gains(finished):
    _, result, _ = finished
    old, gain = result["rows"][0], {"value": 0.2, "low": 0.1, "high": 0.3, "p": 0.01}
    names = ["scratch a", "inflated a", "scratch b", "inflated b"]
    rows = [{**old, "arm": name, "against": {other: gain for other in names if other != name}} for name in names]
    page, plots = render_report({**result, "rows": rows, "arms": [{"name": name, "backbone": {}} for name in names]})
    assert f"{old['mode']}_gains.png" in plots
    assert page.count("<b>+0.200</b>") == 2


def test_the_model_card_takes_the_results(finished):
    output, result, _ = finished
    rows = json.loads((output / RESULTS).read_text())
    assert [(r["mean"], r["low"], r["high"]) for r in rows] == [
        (r["value"], r["low"], r["high"]) for r in result["rows"]
    ]
    assert rows[0]["metric"] == "shapes, probe, 50% of labels: accuracy"
    taken = read_additions(transfers=[output])
    assert taken.results == rows
    assert taken.reports == {f"transfer-{output.name}.html": (output / "report.html").read_bytes()}


@pytest.mark.slow
def test_parts_share_the_cells_out_and_the_whole_is_made_of_them(root, tmp_path):
    from inflate3d.data.shards.parts import Part

    target, ran = Target(root, replace(SHAPES, modes=("knn",))), []
    for number in (1, 2):
        run_transfer(ARMS, target, tmp_path, part=Part(number, 2), report=lambda cell, *_: ran.append(cell.arm))
        assert not (tmp_path / "transfer.json").exists()
    assert sorted(ran) == ["ours", "scratch"]
    whole = run_transfer(ARMS, target, tmp_path, report=lambda *_: pytest.fail("ran again"))
    assert whole["cells"] == {"finished": 2, "of": 2}
    assert json.loads((tmp_path / "transfer.json").read_text())["rows"] == whole["rows"]


def test_rows_average_the_seeds_of_an_arm():
    def record(*right: float) -> dict:
        test = {"keys": list("abcd"), "total": {"accuracy": sum(right) / 4}, "per_sample": {"accuracy": list(right)}}
        return {"test": test, "labels": 4, "chosen": {}, "beside": {}, "seconds": 1.0}

    found = {Cell("a", "probe", 1.0, 0): record(1, 1, 0, 0), Cell("a", "probe", 1.0, 1): record(1, 1, 1, 1)}
    (row,) = summarise(found, "accuracy")
    assert row["value"] == 0.75
    assert row["std"] == pytest.approx(math.sqrt(0.125))
    assert row["per_seed"] == [0.5, 1.0]


def test_whole_volumes_of_unlike_shapes_are_read_one_by_one_from_train_too(tmp_path):
    MSD.write_example(tmp_path)
    build_shards(MSD(tmp_path, task="Task99_Toy", val_count=2), tmp_path / "shards" / "toy", progress=False)
    sample = {"patch_size": [8, 8, 8]}
    protocol = Protocol("toy", "medical_segmentation", modes=("finetune",), batch_size=2, sample=sample)
    target = Target(tmp_path / "shards", protocol)
    for samples, split in ((target.choice, "train"), (target.fit, "train"), (target.test, "val")):
        batches = list(target.batches(samples, split))
        assert [b.keys for b in batches] == [[s.key] for s in samples]
        assert all(b.image.shape[2:] == b.targets["mask"].shape[1:] for b in batches)


def test_samples_without_a_class_are_seen_by_nobody(root, tmp_path):
    class Unknown(Toy):
        def read(self, case):
            raw = super().read(case)
            return replace(raw, targets={}) if case.source % 3 == 0 else raw

    build_shards(Unknown(kind="volume_classification", num_train=12, num_val=6, size=16), tmp_path / "shapes")
    target = Target(tmp_path, SHAPES)
    assert (len(target.fit) + len(target.choice), len(target.test)) == (8, 4)
    assert {s.label for s in (*target.fit, *target.choice, *target.test)} == {1, 2}


def test_a_number_is_measured_by_fine_tuning_alone(tmp_path):
    build_shards(Toy(kind="volume_targets", num_train=8, num_val=4, size=16), tmp_path / "all", progress=False)
    number = replace(SHAPES, dataset="all", task="regression", sample={"size": [16, 16, 16]})
    with pytest.raises(InputError, match=r"--task regression: .*missing .* 'scale'"):
        Target(tmp_path, number)
    with pytest.raises(InputError, match="is measured by finetune; leave it out"):
        Target(tmp_path, replace(number, init_args={"scale": 1}))
    tuned = Target(tmp_path, replace(number, init_args={"scale": 1}, modes=("finetune",)))
    arm = replace(ARMS[0], backbone=replace(ARMS[0].backbone, stems={"ct": 1}))
    found = answer(fine_tune(arm, tuned, tuned.fit, learning_rate=1e-3, steps=2, seed=0), tuned, tuned.test, "val")
    assert found.total["mae"] == pytest.approx(np.mean(found.per_sample["mae"]), abs=1e-4)
    protocol = replace(SHAPES, dataset="all", sample={"size": [16, 16, 16]}, target="shape")
    target = Target(tmp_path, protocol)
    assert (target.metric, target.target.names) == ("accuracy", ("ball", "cube", "cross"))
    assert Protocol.from_dict(protocol.to_dict()) == protocol
    assert "target" not in SHAPES.to_dict()


@pytest.mark.slow
def test_fine_tuning_a_segmentation_repeats_bitwise_and_answers_whole_volumes(root):
    protocol = Protocol(
        "seg", "medical_segmentation", modes=("finetune",), batch_size=2, sample={"patch_size": [8, 16, 16]}
    )
    target = Target(root, protocol)
    arm = replace(ARMS[0], backbone=replace(ARMS[0].backbone, stems={"ct": 1}))
    first, again = (fine_tune(arm, target, target.fit, learning_rate=1e-3, steps=3, seed=5) for _ in range(2))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    found = answer(first, target, target.test, target.test_split)
    assert found.keys == [s.key for s in target.test]
    assert found.total["dice"] == pytest.approx(np.mean(found.per_sample["dice"]), abs=1e-4)


@pytest.mark.slow
@pytest.mark.data
def test_inflated_imagenet_weights_beat_scratch_in_a_frozen_probe_of_modelnet10(shared_data, tmp_path):
    from inflate3d.datasets.modelnet10 import ModelNet10

    build_shards(ModelNet10(shared_data / "modelnet10"), tmp_path / "modelnet10", progress=False)
    protocol = replace(
        SHAPES,
        dataset="modelnet10",
        modes=("probe",),
        fractions=(0.02,),
        val_fraction=0.02,
        max_test=80,
        recalibration_batches=4,
        batch_size=16,
        sample={"size": [20, 20, 20], "resize": [32, 32, 32]},
    )
    target = Target(tmp_path, protocol)
    file = str(shared_data / "weights" / "tf_efficientnet_lite0.in1k.safetensors")
    arms = arms_for(["tf_efficientnet_lite0"], target.card, pretrained={"": file}, timm_kwargs={"output_stride": 16})
    rows = {r["arm"]: r for r in run_transfer(arms, target, tmp_path / "out")["rows"]}
    both = "recalibrated, levels"
    assert rows["inflated"]["beside"][both] > rows["scratch"]["beside"][both] + 0.05
    assert rows["inflated"]["value"] > 0.45  # chance is 0.1
