"""A training step of ComboStoc-S/4 against the published construction (`bench/reference/transformer.py`).

Both networks hold the same weights; their outputs are compared before anything is timed. Random numbers are each side's
own, so that only the work is the same.
"""

from __future__ import annotations

import torch

from bench.presets import SyntheticDataset
from bench.reference import transformer as reference
from bench.rows.row import Row, Work
from bench.train import SyntheticBatches
from training.loop.loop import Loop
from training.loop.settings import LoopOptions
from training.methods.combostoc import ComboStocOptions, build

__all__ = ["ROWS"]

SIZE, CHANNELS, CLASSES, BATCH = 32, 4, 1000, 4


def _training() -> Work:
    torch.manual_seed(0)
    options = ComboStocOptions(
        outdir="runs", data="latents.zip", cond=True, model="ComboStoc-S/4", batch=BATCH, learn_sigma=True
    )
    dataset, device = SyntheticDataset(SIZE, CHANNELS, CLASSES), torch.device("cpu")
    method = build(options, dataset, device)
    net = method.modules["net"]
    with torch.no_grad():
        for parameter in net.parameters():  # modulations and outputs begin at 0
            parameter.add_(0.02 * torch.randn_like(parameter))
    plain = reference.ComboStoc(SIZE, CHANNELS, CLASSES, 4, 384, 12, 6)
    plain.load_state_dict(net.model.state_dict())
    x, t, y = torch.randn(2, CHANNELS, SIZE, SIZE), torch.rand(2, CHANNELS, SIZE, SIZE), torch.tensor([3, 7])
    with torch.no_grad():
        ours = -net.eval()(x, 1 - t.double(), torch.nn.functional.one_hot(y, CLASSES).float())
        torch.testing.assert_close(ours, plain.eval()(x, t, y), rtol=0, atol=1e-3 * float(ours.abs().max()))
    net.train()
    batches = SyntheticBatches(BATCH, dataset.image_shape, CLASSES, device)
    loop = Loop(method, batches, LoopOptions(seed=0, batch=BATCH), device)
    images, labels = batches.next()
    step = reference.training_step(plain.train(), images, labels.argmax(1), CLASSES)

    def own() -> None:
        loop.step()

    return Work(step, own)


ROWS = [Row("training step, ComboStoc-S/4, batch 4", _training, 1.67, agree=None, repeats=5)]
