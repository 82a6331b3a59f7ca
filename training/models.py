"""The models, described once as data: an encoder, a decoder and the tail of a backbone.

A model is a bottleneck (encoder, factorized entropy model, decoder) in front of a classifier's
tail. The bottleneck replaces the classifier's first layers: its decoder gives what the layer at the
cut gives. The paper's seven models have a torchvision ResNet-50, cut after layer1. The encoders n0,
n4 and n8 also go with any other backbone that backbones.py can cut.

Always holds: a model's state_dict has the names of the published checkpoints: `bottleneck_layer.*`,
and for the tail the backbone's own. So a published state_dict fits key by key.
"""

import json
from dataclasses import dataclass
from typing import NamedTuple

import torch
from compressai.entropy_models import EntropyBottleneck
from torch import Tensor, nn

from .architectures import ENCODERS, Architecture, Ours
from .backbones import BACKBONES, RESNET50, Backbone, count_parameters, cut_backbone
from .bottleneck import Bottleneck, Level, VariableBottleneck, random_levels
from .rates import LEVELS
from .registry import REGISTRY


@dataclass(frozen=True)
class ModelSpec:
    """What distinguishes one model from another.

    Attributes:
        architecture: of the bottleneck.
        backbone: the classifier whose tail follows it.
        frozen_tail: in training the tail always keeps the teacher's weights and stays in eval mode.
        variable_rate: one checkpoint has all rate levels from 0 to 15.
    """

    architecture: Architecture
    backbone: Backbone = RESNET50
    frozen_tail: bool = False
    variable_rate: bool = False

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return self.architecture.latent_channels

    @property
    def stride(self) -> int:
        """Input pixels per latent row and column."""
        return self.architecture.stride

    @property
    def latent_shrink(self) -> int:
        """Rows and columns lost at the border."""
        return self.architecture.latent_shrink


MODELS: dict[str, ModelSpec] = {
    name: ModelSpec(
        ENCODERS[entry.encoder], BACKBONES[entry.backbone], entry.frozen_tail, entry.variable_rate
    )
    for name, entry in REGISTRY.items()
}


class UnknownModelError(ValueError):
    """The name is not one of `MODELS`, and no checkpoint says what it stands for."""

    def __init__(self, name: str):
        super().__init__(f"unknown model {name!r}; choose one of: {', '.join(MODELS)}")


_MOST_PER_STORED = 4  # parameters of a described network for each value of its checkpoint


class DescriptionError(ValueError):
    """A description of a model, as a checkpoint's metadata has it, that cannot be read."""


def model_spec(name: str) -> ModelSpec:
    """Look up a model by name; raises UnknownModelError that lists the known ones."""
    try:
        return MODELS[name]
    except KeyError:
        raise UnknownModelError(name) from None


def spec_for(
    encoder: str, source: str, cut: str, variable_rate: bool = False
) -> tuple[str, ModelSpec]:
    """Name and spec of an encoder (n0, n4, n8) in front of any backbone, cut at any layer.

    Names of variable-rate models end in _vr.

    Raises UnknownModelError for another encoder, BackboneNameError, CutError.
    """
    if not isinstance(ENCODERS.get(encoder), Ours):
        raise UnknownModelError(encoder)
    wanted = ModelSpec(ENCODERS[encoder], cut_backbone(source, cut), variable_rate=variable_rate)
    for name, spec in MODELS.items():
        if spec == wanted:
            return name, spec
    return f"{encoder}_{source.partition(':')[2]}{'_vr' if variable_rate else ''}", wanted


def describe(spec: ModelSpec) -> str:
    """JSON by which `spec_of_description` builds the same model; for a checkpoint's metadata."""
    encoder = next(name for name, one in ENCODERS.items() if one == spec.architecture)
    described = {"encoder": encoder, "backbone": spec.backbone.source, "cut": spec.backbone.cut}
    return json.dumps(described | ({"levels": LEVELS} if spec.variable_rate else {}))


def spec_of_description(text: str, stored: int) -> ModelSpec:
    """The spec that `describe` wrote into a checkpoint of `stored` values.

    A checkpoint has all of its network but the first layers, so a much larger network is refused
    before it is built. Raises DescriptionError.
    """
    try:
        described = json.loads(text)
        encoder, source, cut = (described[key] for key in ("encoder", "backbone", "cut"))
        levels = described.get("levels")
        if levels not in (None, LEVELS):
            raise ValueError(f"{levels!r} rate levels")
        if count_parameters(source) > _MOST_PER_STORED * stored:
            raise ValueError(f"{source} is far larger than the checkpoint")
        return spec_for(encoder, source, cut, levels is not None)[1]
    # Unknown names are ValueErrors.
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DescriptionError(f"describes no model of this release ({error})") from error


class Outputs(NamedTuple):
    """What the losses compare: features, logits and the estimated bits.

    features: at the cut, then of each later stage; of a ResNet-50 [N, 256, H/4, W/4],
    [N, 512, H/8, W/8], [N, 1024, H/16, W/16], [N, 2048, H/32, W/32];
    logits: float [N, classes]; bits: a scalar, 0 for the teacher, or float [N] where rates vary.
    """

    features: list[Tensor]
    logits: Tensor
    bits: Tensor


class FeatureCompressionModel(nn.Module):
    """A bottleneck and the tail of a backbone behind it.

    Attributes:
        classes: number of logits.
        fixed_statistics: in training too, batch norm and dropout of the tail work as in eval mode.
    """

    def __init__(self, spec: ModelSpec, num_classes: int):
        super().__init__()
        self.spec, self.classes = spec, num_classes
        self.frozen_tail = self.frozen_bottleneck = self.fixed_statistics = False
        kind = VariableBottleneck if spec.variable_rate else Bottleneck
        self.bottleneck_layer = kind(spec.architecture, spec.backbone)
        self.tail = spec.backbone.tail(num_classes)
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    def freeze_tail(self) -> None:
        """From now on the tail has no gradient and stays in eval mode."""
        self.frozen_tail = True
        self.tail.eval().requires_grad_(False)

    def freeze_bottleneck(self) -> None:
        """From now on encoder, entropy model and decoder have no gradient and stay in eval mode."""
        self.frozen_bottleneck = True
        self.bottleneck_layer.eval().requires_grad_(False)

    def logits_of_symbols(self, symbols: Tensor) -> Tensor:
        """All that the cloud does: symbols [N, channels, H', W'] -> logits [N, classes]."""
        return self.tail(self.bottleneck_layer.decode(symbols)).logits

    def train(self, mode: bool = True) -> "FeatureCompressionModel":
        """Set the mode of all that is not frozen."""
        super().train(mode)
        if self.frozen_tail or self.fixed_statistics:
            self.tail.eval()
        if self.frozen_bottleneck:
            self.bottleneck_layer.eval()
        return self

    def forward(self, image: Tensor, features_only: bool = False, level: Level = None) -> Outputs:
        """Image float [N, 3, H, W], normalised as the backbone wants it, H and W multiples of 8.

        With `features_only` the tail is not run: later features and logits are left out. Without
        a `level` a variable-rate model takes random ones in training, otherwise the middle one.
        """
        if level is None and self.training and self.spec.variable_rate:
            level = random_levels(len(image), image.device)
        features, bits = self.bottleneck_layer(image, level)
        if features_only:
            return Outputs([features], features.new_zeros(()), bits)
        found = self.tail(features)
        return Outputs([features, *found.stages], found.logits, bits)


_BOTTLENECK, _TAIL = "bottleneck_layer.", "tail."


def _without_prefix(
    model: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object
) -> None:
    """A state_dict names the tail's tensors as the backbone does."""
    for key in [key for key in state if key.startswith(prefix + _TAIL)]:
        state[prefix + key.removeprefix(prefix + _TAIL)] = state.pop(key)


def _with_prefix(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """The opposite, before a state_dict is loaded."""
    for key in [key for key in state if key.startswith(prefix)]:
        if not key.startswith(prefix + _BOTTLENECK):
            state[prefix + _TAIL + key.removeprefix(prefix)] = state.pop(key)


def build_model(name: str, num_classes: int = 1000) -> FeatureCompressionModel:
    """A model with random weights; raises UnknownModelError for an unknown name."""
    return build(model_spec(name), num_classes)


def build(spec: ModelSpec, num_classes: int) -> FeatureCompressionModel:
    """A model with random weights."""
    model = FeatureCompressionModel(spec, num_classes)
    if spec.frozen_tail:
        model.freeze_tail()
    return model


def fit_quantiles(model: FeatureCompressionModel) -> None:
    """Set the outer quantiles, which bound the tables, from the trained entropy model.

    The reference leaves them at -10 and 10. CompressAI finds all three by bisection; the median
    is put back to 0, the grid that the decoder was trained on.
    """
    entropy = model.bottleneck_layer.entropy_bottleneck
    entropy.update(force=True, update_quantiles=True)
    with torch.no_grad():
        entropy.quantiles[:, :, 0].clamp_(max=-1.0)
        entropy.quantiles[:, :, 1] = 0.0
        entropy.quantiles[:, :, 2].clamp_(min=1.0)


def build_random_model(
    name: str, num_classes: int = 1000, seed: int = 0
) -> FeatureCompressionModel:
    """`build_random` of a registered model; raises UnknownModelError for an unknown name."""
    return build_random(model_spec(name), num_classes, seed)


def build_random(spec: ModelSpec, num_classes: int, seed: int = 0) -> FeatureCompressionModel:
    """An untrained model in eval mode, the same for the same seed; for timing and tests only.

    Its latent is scaled to a standard deviation of 0.6 on noise, and its entropy model to a width
    of about one symbol, so that there is something to code and tables to code it with.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = build(spec, num_classes).eval()
        bottleneck = model.bottleneck_layer
        bottleneck.entropy_bottleneck = EntropyBottleneck(spec.latent_channels, init_scale=1.0)
        last = [module for module in bottleneck.encoder.modules() if isinstance(module, nn.Conv2d)][
            -1
        ]
        if last.bias is not None:
            last.bias.zero_()
        last.weight *= 0.6 / bottleneck.encoder(torch.randn(4, 3, 224, 224)).std()
        fit_quantiles(model)
    return model.eval()
