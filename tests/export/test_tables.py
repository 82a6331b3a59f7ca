"""The tables of an entropy model, and hashes of weights."""

import pytest
import torch

from export.tables import QuantilesError, bottleneck_sha256, make_tables
from training.models import build_random_model


@pytest.mark.parametrize("value", [float("nan"), 1e6, -20.0])
def test_quantiles_that_bound_no_table(value: float) -> None:
    broken = build_random_model("ours_n0", 10)
    with torch.no_grad():
        broken.bottleneck_layer.entropy_bottleneck.quantiles[5, 0, 2] = value
    with pytest.raises(QuantilesError, match="channel 5"):
        make_tables(broken)


def test_the_bottlenecks_hash_covers_its_weights_and_not_the_tail() -> None:
    own = bottleneck_sha256(build_random_model("ours_n0", 10))
    other = build_random_model("ours_n0", 10)
    assert bottleneck_sha256(other) == own
    with torch.no_grad():
        other.tail.fc.bias += 1
    assert bottleneck_sha256(other) == own
    for name in ("encoder.0.bias", "decoder.0.weight", "entropy_bottleneck.quantiles"):
        other = build_random_model("ours_n0", 10)
        with torch.no_grad():
            other.bottleneck_layer.get_parameter(name).view(-1)[1] += 1e-3
        assert bottleneck_sha256(other) != own, name
