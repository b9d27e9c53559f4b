"""The loop on a tiny regression method with closed-form pieces: accumulation, resume, stop, non-finite gradients."""

import copy
import functools

import pytest
import torch
from torch import nn

from torch_utils.dropout import Dropout
from training.loop.ema import halflife_beta
from training.loop.loop import Loop, NonFiniteError
from training.loop.settings import LoopOptions
from training.method import Average, LossOut, Method, Phase

CPU = torch.device("cpu")


class Data:
    """A fixed stream of random batches; position is all its state."""

    def __init__(self, batch):
        self.batch, self.position = batch, 0

    def next(self):
        generator = torch.Generator().manual_seed(self.position)
        self.position += 1
        return torch.randn(self.batch, 3, generator=generator), torch.zeros(self.batch, 0)

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def make_loop(batch=8, poison=None, overflow=None, conv=False, dropout=0.0, **settings):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), Dropout(dropout), nn.Linear(16, 3))
    if conv:
        image = nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1))
        net = nn.Sequential(image, nn.Flatten()).to(memory_format=torch.channels_last)

    def loss(batch):
        noise = batch.rng.randn(batch.data.shape)
        error = (net(batch.data + noise) - batch.data) ** 2
        if poison is not None and batch.nimg == poison:
            error = error * float("nan")
        if overflow is not None and batch.nimg == overflow:
            error = error + 3e38  # the sum is infinite
        return LossOut(error, {"Loss/loss": error})

    phase = Phase(
        "net",
        ("net",),
        loss,
        functools.partial(torch.optim.Adam, lr=0, fused=True),
        lambda nimg: min(nimg / 100, 1) * 1e-2,
    )
    method = Method(
        name="toy",
        modules={"net": net},
        phases=(phase,),
        averages={"ema": Average("net", lambda nimg, batch: halflife_beta(nimg, batch, 50, 0.5))},
        save=lambda *_: None,
    )
    return Loop(method, Data(batch), LoopOptions(seed=5, batch=batch, **settings), CPU)


def tensors(loop):
    state = loop.state_dict()
    flat = {f"m.{k}": v for k, v in state["modules"]["net"].items()}
    flat |= {f"e.{k}": v for k, v in state["averages"]["ema"].items()}
    for i, slot in state["optimizers"]["net"]["state"].items():
        flat |= {f"o.{i}.{k}": v for k, v in slot.items()}
    return flat


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_resume_is_bit_exact():
    straight = make_loop()
    for _ in range(8):
        straight.step()
    first = make_loop()
    for _ in range(4):
        first.step()
    state = copy.deepcopy(first.state_dict())
    second = make_loop()
    torch.manual_seed(123)  # the global generator of the new process is somewhere else
    second.load_state_dict(state)
    for _ in range(4):
        second.step()
    assert second.nimg == straight.nimg == 64
    assert_equal(tensors(second), tensors(straight))
    assert second.stats.collect() == straight.stats.collect()


def test_resume_keeps_moments_beside_their_weights():
    """A file holds dense tensors; weights may be channels_last, and fused kernels pair elements by address."""
    loops = [make_loop(conv=True) for _ in range(2)]
    for loop in loops:
        for _ in range(3):
            loop.step()
    state = loops[1].state_dict()
    for slots in state["optimizers"]["net"]["state"].values():
        slots.update({k: v.clone(memory_format=torch.contiguous_format) for k, v in slots.items()})
    loops[1].load_state_dict(state)
    for loop in loops:
        loop.step()
    assert_equal(tensors(loops[1]), tensors(loops[0]))


@pytest.mark.parametrize("dropout", [0, 0.3])
def test_accumulation_changes_only_rounding(dropout):
    whole, parts = (make_loop(batch=128, batch_gpu=n, dropout=dropout) for n in (None, 32))
    assert parts.rounds == 4
    for _ in range(5):
        whole.step()
        parts.step()
    for key, value in tensors(whole).items():
        torch.testing.assert_close(tensors(parts)[key], value, rtol=1e-4, atol=1e-6)


def test_every_round_starts_from_the_same_buffers():
    """What a forward pass leaves in buffers (power iterations) is what one round leaves, as with as many processes."""
    loop, counter = make_loop(batch_gpu=2), nn.Module()
    counter.register_buffer("passes", torch.zeros(()))
    loop.method.modules["counter"] = counter
    seen = []
    loop.method.modules["net"].register_forward_pre_hook(lambda *_: seen.append(counter.passes.add_(1).item()))
    for _ in range(2):
        loop.step()
    assert seen == [1, 1, 1, 1, 2, 2, 2, 2]
    assert counter.passes == 2


def test_first_step_moves_nothing_but_counts():
    loop = make_loop()
    before = tensors(loop)["m.0.weight"].clone()
    loop.step()  # learning rate 0 before the first image
    assert torch.equal(tensors(loop)["m.0.weight"], before)
    loop.step()
    assert not torch.equal(tensors(loop)["m.0.weight"], before)


def test_nonfinite_gradient_stops_before_the_update():
    loop = make_loop(poison=16)
    loop.step()
    loop.step()
    before = {k: v.clone() for k, v in tensors(loop).items() if k.startswith("m.")}
    with pytest.raises(NonFiniteError, match=r"image 16.*net\.0\.weight"):
        loop.step()
    for key, value in before.items():
        assert torch.equal(tensors(loop)[key], value)


def test_a_loss_that_overflows_stops_as_well():
    """Its gradients are finite, but what they belong to is no number."""
    loop = make_loop(overflow=16)
    loop.step()
    loop.step()
    before = {k: v.clone() for k, v in tensors(loop).items() if k.startswith("m.")}
    with pytest.raises(NonFiniteError, match=r"the loss \(Loss/loss\) became NaN or infinite at image 16"):
        loop.step()
    for key, value in before.items():
        assert torch.equal(tensors(loop)[key], value)


@pytest.mark.parametrize("part", ["modules", "averages", "optimizers"])
def test_a_state_with_other_parts_is_refused(part):
    loop = make_loop()
    state = loop.state_dict()
    state[part] = {"other": state[part]}
    with pytest.raises(ValueError, match=f"the {part} other"):
        loop.load_state_dict(state)


def test_a_state_of_another_network_is_refused():
    with pytest.raises(ValueError, match="another network"):
        make_loop().load_state_dict(make_loop(conv=True).state_dict())


def test_nonfinite_zero_goes_on_with_finite_weights():
    loop = make_loop(poison=16, nonfinite="zero")
    for _ in range(4):
        loop.step()
    assert all(torch.isfinite(v).all() for v in tensors(loop).values())


def test_gradient_clipping_limits_the_norm():
    loop = make_loop(grad_clip=1e-3)
    loop.step()
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in loop.method.modules["net"].parameters()]))
    assert norm <= 1e-3 * (1 + 1e-4)


@pytest.mark.parametrize(("batch", "batch_gpu", "world"), [(10, None, 4), (12, 5, 1)])
def test_batches_that_cannot_be_split(batch, batch_gpu, world):
    with pytest.raises(ValueError, match="batch"):
        LoopOptions(seed=0, batch=batch, batch_gpu=batch_gpu).rounds(world)


def test_stop_request_is_reported():
    assert make_loop().step(stop=True)
    assert not make_loop().step()
