"""Power-function averages kept during training, and averages of any length made of them afterwards.

With `--phema=0.05,0.1` a run keeps one average per relative width and writes each beside every snapshot, as
`phema-0.050-NNNNNN.pkl`. From these files this program rebuilds the average of any other width, at any time of the run
(Karras et al. 2024, arXiv 2312.02696, section 3.2 and appendix C; the formulas are in `training/loop/ema.py`).

    python -m training.runs.phema RUN_DIR --std=0.07 --out=FILE
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

import networks
from torch_utils import checkpoint
from torch_utils.cli import Command
from torch_utils.files import numbered
from training.loop.ema import posthoc_error, power_beta, reconstruct, sigma_rel_to_gamma, solve_posthoc_weights
from training.method import Average

EXAMPLES = """\b
Examples:
  # The average of relative width 0.07 at the end of the run
  python -m training.runs.phema runs/00000-digits --std=0.07 --out=ema-0.07.pkl
\b
  # The same as it was after about 40 thousand images
  python -m training.runs.phema runs/00000-digits --std=0.07 --kimg=40 --out=ema-0.07-40.pkl"""


def averages(widths: Sequence[float] | None, module: str) -> dict[str, Average]:
    """What `--phema` adds to a method: an average of `module` per relative width.

    Raises:
        ValueError: a width out of range, or two that share a file name.
    """
    found: dict[str, Average] = {}
    for width in widths or ():
        gamma = sigma_rel_to_gamma(width)
        name = f"phema-{width:.3f}"
        if name in found:
            raise ValueError(f"--phema names the width {width:.3f} twice: three decimals tell widths apart")
        found[name] = Average(module, lambda nimg, batch, gamma=gamma: power_beta(nimg, batch, gamma), width)
    return found


class Rebuilt(NamedTuple):
    """A network with the average asked for.

    info: what its file says. files: how many went into it. error: relative L2 distance of the combined profile to the
    one asked for.
    """

    net: Any
    info: dict[str, Any]
    files: int
    error: float


def rebuild(run_dir: Path, std: float, kimg: float | None = None) -> Rebuilt:
    """The average of relative width `std` at the stored time nearest to `kimg` thousand images (default: the last).

    Only averages that end somewhere can be combined to one that ends there, hence the nearest stored time.

    Raises:
        ValueError: no stored averages, a width out of range, or a time later than everything stored.
    """
    gamma = sigma_rel_to_gamma(std)
    paths = numbered(run_dir, "phema-*.pkl")
    if not paths:
        raise ValueError(f"{run_dir} holds no phema-*.pkl: they are kept by runs started with --phema=0.05,0.1")
    stored = [checkpoint.load(path, "snapshot") for path in paths]
    times = [contents.info["nimg"] for contents in stored]
    if kimg is not None and 1000 * kimg > max(times):
        raise ValueError(f"the last averages of {run_dir} were stored at {max(times) / 1000:g} kimg, not at {kimg:g}")
    end = max(times) if kimg is None else min(times, key=lambda t: abs(t - 1000 * kimg))
    used = [i for i in sorted(range(len(times)), key=times.__getitem__) if times[i] <= end]
    profiles = [(times[i], sigma_rel_to_gamma(stored[i].info["sigma_rel"])) for i in used]
    weights = solve_posthoc_weights(profiles, (end, gamma))
    newest = stored[used[-1]]
    net = networks.load_network(paths[used[-1]])
    net.load_state_dict(reconstruct([stored[i].payload["ema"] for i in used], weights))
    error = posthoc_error(profiles, weights, (end, gamma))
    return Rebuilt(net, {**newest.info, "nimg": end, "sigma_rel": std}, len(used), error)


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.option("--std", type=float, required=True, metavar="FLOAT", help="Relative width wanted, 0 to 0.288.")
@click.option(
    "--kimg", type=click.FloatRange(min=0), metavar="KIMG", help="The nearest stored time.  [default: the last one]"
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Network to write.")
def main(run_dir: Path, std: float, kimg: float | None, out: Path) -> None:
    """Rebuild the network with an average of any length from a run trained with --phema."""
    found = rebuild(run_dir, std, kimg)
    networks.save_network(out, found.net, found.info)
    click.echo(
        f"{out}: relative width {std:g} at {found.info['nimg'] / 1000:g} kimg, from {found.files} stored averages; "
        f"their combination misses the profile by {100 * found.error:.2g}%"
    )


if __name__ == "__main__":
    main()
