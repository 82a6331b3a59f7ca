"""Classifiers of torchvision and timm, cut at a layer: head and tail, shapes, refusals."""

import json

import pytest
import torch
from torch import nn

from training import cuts
from training.architectures import FeatureScale, Ours
from training.backbones import (
    LITE2,
    RESNET50,
    BackboneNameError,
    CutError,
    build_network,
    cut_backbone,
    list_cuts,
    split,
)
from training.models import (
    MODELS,
    DescriptionError,
    ModelSpec,
    UnknownModelError,
    build,
    describe,
    spec_for,
    spec_of_description,
)

CUTS = [
    ("torchvision:mobilenet_v3_small", "features.3", 24, 8),
    ("torchvision:resnet50", "layer2", 512, 8),
    ("timm:convnext_atto", "stages.2", 160, 16),
    ("timm:tf_efficientnet_lite2", "blocks.1", 24, 4),
]


@pytest.mark.parametrize(("source", "cut", "channels", "stride"), CUTS)
def test_head_and_tail_are_the_network(source: str, cut: str, channels: int, stride: int) -> None:
    backbone = cut_backbone(source, cut)
    assert (backbone.channels, backbone.stride) == (channels, stride)
    torch.manual_seed(0)
    network = build_network(source, 7)
    head, tail = split(network, cut)
    image = torch.randn(2, 3, 96, 160)
    with torch.no_grad():
        features = head(image)
        found = tail(features)
        assert features.shape == (2, channels, 96 // stride, 160 // stride)
        assert torch.allclose(found.logits, network(image), atol=1e-5)
        last = network.get_submodule(backbone.classifier)
        assert torch.allclose(last(found.embedding), found.logits, atol=1e-5)
    assert found.stages
    assert all(stage.ndim == 4 for stage in found.stages)
    own = network.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in tail.state_dict().items())


def test_the_registered_backbones_are_what_looking_them_up_gives(monkeypatch) -> None:
    monkeypatch.setattr("training.backbones.BACKBONES", {})
    assert cut_backbone(LITE2.source, LITE2.cut) == LITE2
    assert cut_backbone(RESNET50.source, RESNET50.cut) == RESNET50


@pytest.mark.parametrize(
    ("source", "cut", "reason"),
    [
        ("torchvision:mobilenet_v3_small", "features.0", "stride 2"),
        (
            "torchvision:mobilenet_v3_small",
            "features.99",
            r"no layer 'features\.99'.*training\.cuts",
        ),
        ("torchvision:swin_t", "features.3", "no map of"),
        ("timm:vit_tiny_patch16_224", "blocks.3", "does not take images of 128x128"),
        ("torchvision:densenet121", "features.denseblock1.denselayer2", "shortcut"),
    ],
)
def test_refused_cuts(source: str, cut: str, reason: str) -> None:
    with pytest.raises(CutError, match=reason):
        cut_backbone(source, cut)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("resnet50", "write torchvision:NAME or timm:NAME"),
        ("keras:resnet50", "names no backbone"),
        ("torchvision:resnet_50", "no classifier 'resnet_50'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classifier"),
        ("timm:convnext_att", "convnext_atto"),
    ],
)
def test_refused_names(source: str, reason: str) -> None:
    with pytest.raises(BackboneNameError, match=reason):
        build_network(source)


def test_cuts_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuts.main(["--backbone", "torchvision:mobilenet_v3_small", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    third = next(record for record in records if record["cut"] == "features.3")
    assert third["shape"] == [24, 28, 28]
    assert third["bytes"] == 24 * 28 * 28
    whole = third["multiply_adds_before"] + third["multiply_adds_behind"]
    assert whole == pytest.approx(56.5e6, rel=0.02)  # torchvision's own figure is 0.06 billion
    before = [record["multiply_adds_before"] for record in records]
    assert before == sorted(before)
    assert cuts.main(["--backbone", "torchvision:mobilenet_v3_small"]) == 0
    assert "| features.3 | 24 x 28 x 28 |" in capsys.readouterr().out
    assert cuts.main(["--backbone", "torchvision:nothing"]) == 1
    assert "no classifier" in capsys.readouterr().err


def test_every_listed_cut_can_be_taken() -> None:
    for cut in list_cuts("torchvision:mobilenet_v3_small", 64):
        backbone = cut_backbone("torchvision:mobilenet_v3_small", cut.name)
        assert (backbone.channels, backbone.stride) == (cut.channels, cut.stride)


@pytest.mark.parametrize(("source", "cut", "channels", "stride"), CUTS)
def test_models_in_front_of_them(source: str, cut: str, channels: int, stride: int) -> None:
    name, spec = spec_for("n0", source, cut)
    assert name == f"n0_{source.partition(':')[2]}"
    model = build(spec, 5).eval()
    with torch.no_grad():
        out = model(torch.randn(2, 3, 64, 96))
    assert out.features[0].shape == (2, channels, 64 // stride, 96 // stride)
    assert out.logits.shape == (2, 5)
    stored = sum(value.numel() for value in model.state_dict().values())
    assert spec_of_description(describe(spec), stored) == spec
    assert isinstance(model.bottleneck_layer.decoder[-1], FeatureScale)
    names = set(model.state_dict())
    assert f"{spec.backbone.classifier}.weight" in names
    assert not any(key.startswith("tail.") for key in names)
    model.load_state_dict(model.state_dict())


def test_a_registered_pair_has_its_name() -> None:
    assert spec_for("n4", LITE2.source, LITE2.cut) == ("n4_lite2", MODELS["n4_lite2"])
    assert spec_for("n0", RESNET50.source, RESNET50.cut)[0] == "ours_n0"
    with pytest.raises(UnknownModelError, match="matsubara"):
        spec_for("matsubara", LITE2.source, LITE2.cut)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"encoder": "n4"}',
        '{"encoder": [], "backbone": "x", "cut": "y"}',
        '{"encoder": "n4", "backbone": 1, "cut": "layer1"}',
        '{"encoder": "n9", "backbone": "torchvision:resnet50", "cut": "layer1"}',
        '{"encoder": "n4", "backbone": "torchvision:resnet50", "cut": "layer9"}',
    ],
)
def test_refused_descriptions(text: str) -> None:
    with pytest.raises(DescriptionError, match="describes no model of this release"):
        spec_of_description(text, 1 << 40)


def test_a_network_far_larger_than_its_checkpoint_is_not_built(monkeypatch) -> None:
    def built(*_: object) -> None:
        raise AssertionError("it was built")

    monkeypatch.setattr("training.models.cut_backbone", built)
    text = '{"encoder": "n4", "backbone": "timm:eva02_enormous_patch14_clip_224", "cut": "blocks"}'
    with pytest.raises(DescriptionError, match="far larger than the checkpoint"):
        spec_of_description(text, 10_000_000)


def test_a_shared_tail_is_frozen_and_keeps_its_statistics() -> None:
    model = build(ModelSpec(Ours(0), cut_backbone(*CUTS[0][:2])), 3)
    model.fixed_statistics = True
    model.train()
    assert not any(module.training for module in model.tail.modules())
    assert all(parameter.requires_grad for parameter in model.tail.parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.tail.modules())
    model.freeze_tail()
    assert not any(parameter.requires_grad for parameter in model.tail.parameters())
