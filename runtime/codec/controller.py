"""Keeps the mean size of a stream's feature files near a target.

Files of one level differ in size by a factor of several, because images do. To give each image the
same number of bytes would waste them on simple images. So the level follows the stream slowly, and
an image of many details gets more bytes than others.

The size of a file is modelled as `scale * exp(GROWTH * step)`. The scale is a moving average over
what was coded; an error in GROWTH is made up for by it. For the next image, the target is raised or
lowered by what the stream has saved or overspent so far, spread over the next HORIZON images:

    allowance = target + (images * target - bytes) / HORIZON        within half and twice the target
    step      = ln(allowance / scale) / GROWTH                      within 0 and 240

Always holds: the same sizes give the same steps. If no level reaches the target, the level stays at
its end, and what was saved or overspent counts for no more than HORIZON images, so that the stream
recovers when images change.
"""

import math

from .feature_file import MAX_STEP

GROWTH = 0.01  # of ln(bytes) in a step
HORIZON = 32  # images
_WEIGHT = 1 / 16  # of the newest image in the moving average


class Controller:
    """Chooses the steps of a stream of images, one after the other. Not for several threads.

    Args:
        target: mean bytes of a file, 1 or more.
    """

    def __init__(self, target: float):
        self.target = target
        self._images = 0
        self._saved = 0.0  # bytes, within HORIZON targets
        self._scale = 0.0

    def step(self) -> int | None:
        """The step for the next image, 0 to 240; None for the first: nothing is known yet."""
        if not self._images:
            return None
        allowance = self.target + self._saved / HORIZON
        allowance = min(max(allowance, self.target / 2), 2 * self.target)
        return min(max(round(math.log(allowance / self._scale) / GROWTH), 0), MAX_STEP)

    def record(self, step: int, size: int, spent: int) -> None:
        """Note the file of an image.

        Args:
            step: that of the level the image was coded at.
            size: bytes of the file of that step.
            spent: bytes of the file that was written: fewer where it had to be smaller.
        """
        self._images += 1
        found = size * math.exp(-GROWTH * step)
        self._scale += (found - self._scale) * max(_WEIGHT, 1 / self._images)
        limit = HORIZON * self.target
        self._saved = min(max(self._saved + self.target - spent, -limit), limit)
