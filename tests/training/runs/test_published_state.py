"""States of published EDM training: read as a state of our loop, and continued from the command line in a new run."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from golden_cases import cases
from PIL import Image
from run_locks import release_locks

import networks
import train
from networks.published.edm import read_training_state
from torch_utils.pickles.foreign import named_tensors
from training.loop.loop import Loop
from training.loop.settings import LoopOptions
from training.method import Average, LossOut, Method, Phase
from training.runs.published_state import is_published, read_published


class Nothing:
    """Batches without a position."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        assert state == {}


@pytest.fixture
def state(request, tmp_path):
    """The state of a case with a snapshot beside it, and a fresh network of that kind."""
    case = request.param
    path = Path(shutil.copy(case.path.parent / case.spec["file"], tmp_path))
    net = networks.build(case.spec["net_class"], **case.spec["init_kwargs"])
    with torch.no_grad():
        for p in net.parameters():
            p.normal_()
    networks.save_network(
        tmp_path / path.name.replace("training-state", "network-snapshot").replace(".pt", ".pkl"), net
    )
    return case, path, net


def make_loop(case):
    net = networks.build(case.spec["net_class"], **case.spec["init_kwargs"])
    phase = Phase(
        "net", ("net",), lambda b: LossOut(b.data, {}), functools.partial(torch.optim.Adam, fused=True), float
    )
    method = Method("edm", {"net": net}, (phase,), {"ema": Average("net", lambda *_: 0.5)}, save=print)
    return Loop(method, Nothing(), LoopOptions(seed=0, batch=1), torch.device("cpu"))


@pytest.mark.parametrize("state", cases("edm", "training_state"), indirect=True)
def test_every_part_arrives(state):
    case, path, average = state
    assert is_published(path)
    loop = make_loop(case)
    loop.method.modules["net"].load_state_dict({k: v * 0 for k, v in average.state_dict().items()})
    loop.load_state_dict(read_published(path, loop))
    assert loop.nimg == int(path.stem.rpartition("-")[2]) * 1000
    net, published = loop.method.modules["net"], read_training_state(path)
    theirs = named_tensors(published["net"])
    assert all(torch.equal(value, theirs[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(v, average.state_dict()[k]) for k, v in loop.averaged["ema"].state_dict().items())
    slots = loop.optimizers["net"].state
    order = list(named_tensors(published["net"], buffers=False))
    for i, expected in published["optimizer_state"]["state"].items():
        own = slots.pop(net.get_parameter(order[i]))
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(own[key], expected[key]), (order[i], key)
        assert float(own["step"]) == float(expected["step"])
    assert not slots


@pytest.mark.parametrize("state", cases("edm", "training_state"), indirect=True)
@pytest.mark.parametrize("wrong", ["snapshot", "name", "network", "damaged"])
def test_what_does_not_fit_is_one_sentence(state, wrong):
    case, path, _ = state
    loop = make_loop(case)
    if wrong == "snapshot":
        next(path.parent.glob("*.pkl")).unlink()
    elif wrong == "name":
        path = path.rename(path.with_name("state.pt"))
    elif wrong == "damaged":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        loop.method.modules["net"].register_parameter("another", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match={"network": "another"}.get(wrong, path.parent.name)):
        loop.load_state_dict(read_published(path, loop))


@pytest.mark.parametrize("state", cases("edm", "training_state"), indirect=True)
def test_train_continues_it_in_a_new_run(state, tmp_path):
    case, path, _ = state
    kwargs = case.spec["init_kwargs"]
    if case.spec["net_class"] != "EDMPrecond" or kwargs.get("model_type") != "SongUNet":
        pytest.skip("the options of this command line are those of DDPM++")
    data = tmp_path / "toy"
    data.mkdir()
    mode, size = (("L", "RGB")[kwargs["img_channels"] == 3], (kwargs["img_resolution"],) * 2)
    for i in range(12):
        pixels = np.random.RandomState(i).randint(0, 256, (*size, kwargs["img_channels"]), dtype=np.uint8)
        Image.fromarray(pixels.squeeze(), mode).save(data / f"{i:02d}.png")
    (data / "dataset.json").write_text(
        json.dumps({"labels": [[f"{i:02d}.png", i % max(kwargs["label_dim"], 1)] for i in range(12)]})
    )
    given = {
        "cbase": kwargs["model_channels"], "cres": kwargs["channel_mult"], "num_blocks": kwargs["num_blocks"],
        "attn_resolutions": kwargs["attn_resolutions"], "dropout": kwargs["dropout"],
    }  # fmt: skip
    kimg = int(path.stem.rpartition("-")[2])
    options = [f"--{name.replace('_', '-')}={str(value).strip('[]').replace(' ', '')}" for name, value in given.items()]
    options += [f"--cond={bool(kwargs['label_dim'])}", f"--augment={0.12 if kwargs.get('augment_dim') else 0}"]
    options += [f"--duration={(kimg + 1) / 1000:.6f}", f"--resume={path}", "--batch=128", "--snap=0", "--bench=0"]
    result = CliRunner().invoke(train.main, [f"--outdir={tmp_path / 'runs'}", f"--data={data}", *options])
    release_locks()
    assert result.exit_code == 0, result.output
    assert f"at {kimg}.000 kimg" in result.output
    assert len(list((tmp_path / "runs").iterdir())) == 1
