"""The models' names, the one list of them, and what each is made of.

Commands read it for their help before torch is imported. models.py builds what it names.

Always holds: a name that is taken out breaks checkpoints in the field; names are added.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What a registered model is made of.

    Attributes:
        encoder: of models.ENCODERS.
        backbone: of backbones.BACKBONES.
        frozen_tail: in training the tail always keeps the teacher's weights.
        variable_rate: one checkpoint has all rate levels; the model's name ends in _vr.
        lmb: the rate weight of the default checkpoint; a variable rate has a range of them.
    """

    encoder: str
    backbone: str = "resnet50"
    frozen_tail: bool = False
    variable_rate: bool = False
    lmb: str = "1.28"


REGISTRY: dict[str, Entry] = {
    "ours_n0": Entry("n0"),
    "ours_n4": Entry("n4"),
    "ours_n8": Entry("n8"),
    "ours_n0_enc": Entry("n0", frozen_tail=True),
    "ours_n4_enc": Entry("n4", frozen_tail=True),
    "ours_n8_enc": Entry("n8", frozen_tail=True),
    "matsubara2022wacv": Entry("matsubara"),
    "n4_lite2": Entry("n4", "lite2", lmb="0.65"),
    "ours_n4_vr": Entry("n4", variable_rate=True),
    "n4_lite2_vr": Entry("n4", "lite2", variable_rate=True),
}
