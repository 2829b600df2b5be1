"""The table before the first step, and what it warns of."""

from types import SimpleNamespace

import inflate3d
import pytest
import torch
from inflate3d.cli.summary import _net, one_voxel_warnings
from inflate3d.errors import InputError
from inflate3d.models import Backbone, BackboneConfig


def module(norm="per_domain", reduction=(32, 32, 32)):
    info = SimpleNamespace(reduction_dhw=lambda: [(2, 2, 2), reduction])
    return SimpleNamespace(backbone_config=SimpleNamespace(norm=norm), backbone=SimpleNamespace(feature_info=info))


def rows(sample, batch_size=8):
    return [{"dataset": "shapes", "sample": sample, "batch_size": batch_size}]


def test_a_sample_that_ends_as_one_voxel_is_warned_of():
    (warning,) = one_voxel_warnings(module(), rows("32x28x20"))
    assert "data.datasets.shapes: 32x28x20 ends as one voxel" in warning
    assert "BatchNorm sees 8 values" in warning


@pytest.mark.parametrize("case", [("frozen", (32, 32, 32), "32x32x32"), ("shared", (32, 32, 32), "33x32x32")])
def test_more_voxels_or_norms_without_batch_statistics_are_fine(case):
    norm, reduction, sample = case
    assert one_voxel_warnings(module(norm, reduction), rows(sample)) == []


def test_one_sample_of_one_voxel_is_refused():
    with pytest.raises(InputError, match="cannot train on a single value"):
        one_voxel_warnings(module(), rows("32x32x32", batch_size=1))


def test_the_net_is_told_with_the_inflation_of_the_published_weights(tmp_path):
    folder = inflate3d.publish(inflate3d.create_model("test_resnet", inflation="mean"), str(tmp_path / "w"))
    config = BackboneConfig(f"local-dir:{folder}", pretrained=True)
    run = SimpleNamespace(backbone_config=config, backbone=Backbone(config), heads=torch.nn.ModuleDict())
    assert "mean taps" in _net(run)
