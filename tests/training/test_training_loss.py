"""The loss and the teacher: the paper's terms, and a teacher that never changes."""

from pathlib import Path

import pytest
import torch

from training.checkpoint import CheckpointError
from training.loss import distillation_loss
from training.models import build_model
from training.teachers import Teacher, load_teacher, start_from_teacher


def test_the_teacher_stays_in_eval_mode(backbone: Path) -> None:
    teacher = load_teacher(backbone).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_whose_classifier_is_a_number(tmp_path: Path) -> None:
    torch.save({"state_dict": {"fc.weight": torch.tensor(1.0)}}, tmp_path / "teacher.pt")
    with pytest.raises(CheckpointError, match=r"misshaped: fc\.weight|missing"):
        load_teacher(tmp_path / "teacher.pt")


def test_a_teacher_without_its_other_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2048)}}, tmp_path / "teacher.pt")
    with pytest.raises(CheckpointError, match=r"missing: conv1\.weight"):
        load_teacher(tmp_path / "teacher.pt")


def test_a_teacher_without_a_classifier(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "teacher.pt")
    with pytest.raises(CheckpointError, match="missing"):
        load_teacher(tmp_path / "teacher.pt")
    assert isinstance(Teacher(3).backbone.fc, torch.nn.Linear)


def test_the_loss_is_the_sum_of_its_terms_as_the_paper_has_them(backbone: Path) -> None:
    teacher = load_teacher(backbone)
    model = build_model("ours_n0", 2)
    start_from_teacher(model, teacher)
    assert torch.equal(model.tail.layer3[0].conv1.weight, teacher.backbone.layer3[0].conv1.weight)
    image, label = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    with torch.no_grad():
        ours, theirs = model.eval()(image), teacher(image)
        terms = distillation_loss(ours, theirs, label, 2 * 64 * 64, 0.5)
        expected = (
            0.5 * torch.nn.functional.cross_entropy(ours.logits, label)
            + 0.5
            * (
                theirs.logits.softmax(1)
                * (theirs.logits.log_softmax(1) - ours.logits.log_softmax(1))
            )
            .sum(1)
            .mean()
            + sum(
                ((a - b) ** 2).mean() for a, b in zip(ours.features, theirs.features, strict=True)
            )
            + 0.5 * ours.bits / (2 * 64 * 64)
        )
        itself = distillation_loss(theirs, theirs, label, 1, 0.5)
    assert terms.loss == pytest.approx(float(expected), rel=1e-5)
    assert [tuple(feature.shape[1:]) for feature in ours.features] == [
        (256, 16, 16),
        (512, 8, 8),
        (1024, 4, 4),
        (2048, 2, 2),
    ]
    assert float(itself.distillation) == pytest.approx(0, abs=1e-6)
    assert float(itself.features) == 0


def test_the_decoder_is_trained_on_rounded_latents_and_gradients_reach_the_encoder() -> None:
    torch.manual_seed(0)
    bottleneck = build_model("ours_n0", 2).bottleneck_layer.train()
    image, seen = torch.randn(1, 3, 32, 32), []
    bottleneck.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features, bits = bottleneck(image)
    assert torch.allclose(seen[0], seen[0].round(), atol=1e-5)
    features.sum().backward()
    assert bottleneck.encoder[0].weight.grad.abs().sum() > 0
    assert float(bits.detach()) > 0
