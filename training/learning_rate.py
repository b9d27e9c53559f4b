"""Learning rates as functions of the image counter.

`nimg` is the number of training images seen before the step that uses the rate. The linear ramp-up is that of Karras et
al. 2022 (arXiv 2206.00364, appendix F): it makes the first step's rate 0.
"""

from __future__ import annotations


def lr_rampup(nimg: int, lr: float, rampup: float) -> float:
    """`lr` after a linear ramp over the first `rampup` images, 0 at image 0."""
    return lr * min(nimg / max(rampup, 1e-8), 1)
