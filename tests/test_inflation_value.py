"""Inflation: one value, the same words in create_model, configs and files, one set of checks."""

import json
from dataclasses import replace

import inflate3d
import pytest
from inflate3d.cli.check import check_config
from inflate3d.cli.config import load_config
from inflate3d.contracts import DatasetCard
from inflate3d.errors import InputError
from inflate3d.inflation import PRESETS, Inflation, InflationPlan, NetInput, Taps, resolve_plan
from inflate3d.models import BackboneConfig
from inflate3d.models.spec import NetSpec
from inflate3d.targets import ClassTarget
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import MultiTaskModule
from inflate3d.training.run.saved import without_weights

VALUES = [
    Inflation(),
    Inflation(Taps("overshoot", 0.5), InflationPlan("mine", (3, None), (1, 2), 2), "joint", "frame", "zeros"),
]
# What a config.json and a checkpoint hold that were written before time_padding was.
NET_1 = {
    "base": "test_resnet",
    "in_chans": 1,
    "num_classes": 0,
    "global_pool": None,
    "base_kwargs": {},
    "inflation": {"taps": "mean", "overshoot": 0.25},
    "plan": PRESETS["slow"].to_dict(),
    "attention": "frame",
    "statistics": "frame",
}


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_it_survives_json_alone_in_a_backbones_config_and_in_a_nets_spec(value):
    def again(values):
        return json.loads(json.dumps(values))

    assert Inflation.from_dict(again(value.to_dict())) == value
    config = BackboneConfig("test_resnet", inflation=value, stems={"ct": 1})
    assert BackboneConfig(**again(config.to_dict())) == config
    spec = NetSpec("test_resnet", replace(value, plan=PRESETS["i3d"]))
    assert NetSpec.from_dict(again(spec.to_dict())) == spec


def test_nets_written_before_time_padding_are_read():
    spec = NetSpec.from_dict(NET_1)
    assert spec.inflation == Inflation(Taps("mean"), PRESETS["slow"], statistics="frame")
    written = spec.to_dict()
    assert written.pop("time_padding") == "replicate"
    assert written == NET_1


def test_the_words_of_create_model_make_it_and_it_can_be_given_whole():
    words = dict(inflation="mean", plan="slow", statistics="frame", time_padding="zeros")
    value = Inflation.from_dict(words)
    nets = [inflate3d.create_model("test_resnet", num_classes=0, **w) for w in (words, {"inflation": value})]
    assert [net.net_spec.inflation for net in nets] == [value, value]
    state = nets[0].state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in nets[1].state_dict().items()}
    with pytest.raises(InputError, match="statistics is 'frame' beside a whole Inflation"):
        inflate3d.create_model("test_resnet", inflation=value, statistics="frame")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"taps": "center"}, "inflation: unknown key 'taps'; allowed: 'attention', 'inflation'"),
        ({"atention": "joint"}, "unknown key 'atention'; close names: 'attention'"),
        ({"attention": "join"}, "unknown attention 'join'; close names: 'joint'"),
        ({"statistics": "clips"}, "unknown statistics 'clips'; close names: 'clip'"),
        ({"time_padding": "zero"}, "unknown time_padding 'zero'; close names: 'zeros'"),
        ({"inflation": "centre"}, "unknown inflation 'centre'; close names: 'center'"),
        ({"plan": "i3dd"}, "unknown plan 'i3dd'; close names: 'i3d'"),
        ({"plan": {"stride": [1]}}, "plan: unknown key 'stride'; close names: 'strides'"),
        ({"overshoot": -1}, "overshoot is -1"),
    ],
)
def test_a_wrong_word_is_refused_wherever_it_comes_from(words, message):
    with pytest.raises(InputError, match=message):
        Inflation.from_dict(words)


def test_it_reads_as_one_line():
    assert str(VALUES[1]) == (
        "overshoot 0.5 taps, joint attention, frame statistics, time padding zeros; "
        "plan mine: strides along D 1 2, kernels along D 3 own"
    )


# ------------------------------------------------------------------------------------------- auto, of several datasets

VIDEO, THICK, CUBE = (
    NetInput((32, 224, 224)),
    NetInput((48, 192, 192), (5.0, 0.8, 0.8)),
    NetInput((64, 64, 64), (1.0,) * 3),
)


def test_no_dataset_loses_its_depth_to_another():
    plans = [resolve_plan("auto", datasets=[d]) for d in (VIDEO, THICK, CUBE)]
    joint = resolve_plan("auto", datasets=[VIDEO, THICK, CUBE])
    assert joint == resolve_plan("auto", datasets=[CUBE, VIDEO, THICK])
    for level in range(1, 8):
        assert all(joint.stride(0, level) <= plan.stride(0, level) for plan in plans)
        assert all(-(-d.size[0] // joint.stride(0, level)) >= 2 for d in (VIDEO, THICK, CUBE))
    assert resolve_plan("auto", datasets=[VIDEO, replace_depth(CUBE, 4)]).total_stride == 2


def replace_depth(given, depth):
    return given._replace(size=(depth, *given.size[1:]))


def test_a_kernel_reaches_along_d_where_one_dataset_has_a_use_for_it():
    assert resolve_plan("auto", datasets=[THICK]).kernels[:2] == (1, 1)
    assert resolve_plan("auto", datasets=[THICK, VIDEO]).kernels[:2] == (None, None)


def test_what_the_config_gives_stands_for_every_datasets_own():
    given = dict(input_size=(16, 96, 96), spacing_mm=(1, 1, 1))
    assert resolve_plan("auto", datasets=[VIDEO, THICK], **given) == resolve_plan("auto", **given)
    sized = resolve_plan("auto", datasets=[THICK], input_size=(16, 96, 96))
    assert sized == resolve_plan("auto", input_size=(16, 96, 96), spacing_mm=THICK.spacing_mm)


def test_published_weights_keep_their_plan_but_for_a_size_too_short_for_it():
    own = PRESETS["isotropic"]
    assert resolve_plan("auto", own=own, datasets=[replace_depth(CUBE, 4)]) is own
    assert resolve_plan("auto", own=own, input_size=(8, 64, 64)).strides[:6] == (1, 2, 2, 2, 1, 1)
    assert resolve_plan("2d", own=own) is PRESETS["2d"]
    config = BackboneConfig("local-dir:anywhere", pretrained=True)
    assert config.resolved([CUBE]) is config


def test_what_nobody_knows_is_isotropic():
    assert resolve_plan("auto", datasets=[NetInput(), NetInput()]) is PRESETS["isotropic"]
    assert resolve_plan("auto", datasets=[NetInput(), VIDEO]).total_stride == 16


# ------------------------------------------------------------------------------------------------------- auto, in a run


def test_a_run_writes_down_the_plan_that_its_datasets_make(tmp_path):
    config = load_config(["quickstart.yaml"], ["--model.backbone.plan", "auto", "--data.root", str(tmp_path)])
    check_config(config)
    written = config.get("model", "backbone", "plan")
    toys = [NetInput((8, 24, 24)), NetInput((24, 24, 24), (1, 1, 1)), NetInput((24, 24, 24), (1, 1, 1))]
    assert InflationPlan.from_dict(written) == resolve_plan("auto", datasets=toys)
    assert written["strides"][:4] == [1, 2, 2, 1]  # eight frames leave two
    config = load_config(["quickstart.yaml"], ["--model.backbone.attention", "join", "--data.root", str(tmp_path)])
    with pytest.raises(InputError, match=r"quickstart.yaml:\d+: model.backbone: unknown attention 'join'"):
        check_config(config)


def test_a_module_builds_it_and_its_checkpoint_holds_it():
    words = ("shapes", "volume", "Shapes", "mask", "https://x.org", "CC0-1.0", True, True, "None")
    card = DatasetCard(*words, targets={"label": ClassTarget(("a", "b"))})
    module = MultiTaskModule(BackboneConfig("test_resnet"), {"shape": VolumeClassification(datasets=["shapes"])})
    module.net_inputs = [NetInput((4, 24, 24), (1.0, 1.0, 1.0)), NetInput((24, 24, 24))]
    plan = module.build({"shapes": card}).backbone.net.plan
    assert plan == resolve_plan("auto", datasets=module.net_inputs)
    assert plan.total_stride == 2
    state = {}
    module.on_save_checkpoint(state)
    state = json.loads(json.dumps({key: state[key] for key in ("backbone", "net")})) | {"state_dict": {}}
    saved = BackboneConfig(**state["backbone"])
    assert saved.inflation.plan == plan
    module.backbone.check_trained_with(state["net"])
    with pytest.raises(InputError, match=r"these weights were trained with plan slow: .*; this net has plan auto: "):
        module.backbone.check_trained_with({**state["net"], "plan": PRESETS["slow"].to_dict()})
    older = replace(saved, inflation=replace(saved.inflation, plan="auto"))  # the net's own is the truth
    assert without_weights(older, state).inflation.plan == plan
