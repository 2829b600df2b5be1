"""The table before the first step, and what it warns of."""

from types import SimpleNamespace

import inflate3d
import pytest
import torch
from inflate3d.cli.summary import _net, one_voxel_warnings, padding_warnings
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


def test_patches_that_exceed_the_median_volume_are_warned_of_with_what_would_fit():
    manifest = SimpleNamespace(statistics={"shape": {"median": [1.0, 35.0, 50.0, 35.0]}})
    bare = SimpleNamespace(statistics={})
    windows = {"brain": (32, 64, 64), "fits": (32, 48, 32), "unmeasured": (96, 96, 96)}
    data = SimpleNamespace(windows=windows, manifests={"brain": manifest, "fits": manifest, "unmeasured": bare})
    (warning,) = padding_warnings(data)
    assert "data.datasets.brain.sample.patch_size is [32, 64, 64], its median volume [35, 50, 35]" in warning
    assert "about 57% of each patch is padding. [32, 48, 32] would fit" in warning  # 1 - 50/64 * 35/64


def test_the_net_is_told_with_the_inflation_of_the_published_weights(tmp_path):
    folder = inflate3d.publish(inflate3d.create_model("test_resnet", inflation="mean"), str(tmp_path / "w"))
    config = BackboneConfig(f"local-dir:{folder}", pretrained=True)
    run = SimpleNamespace(backbone_config=config, backbone=Backbone(config), heads=torch.nn.ModuleDict())
    assert "mean taps" in _net(run)
