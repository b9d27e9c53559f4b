"""Share networks: snapshots and schedule files on the Hugging Face hub, and files that need none of our code.

    python -m networks.share push NET.pkl hf:OWNER/NAME      config.json, model.safetensors and a card (README.md)
    python -m networks.share pull hf:OWNER/NAME NET.safetensors
    python -m networks.share export NET.pkl OUT --format=safetensors|dill

A dill file carries the source text of the classes and runs it when it is loaded, as every pickle of live objects does:
`dill.load` opens it where PyTorch and dill are installed and nothing of this project is. Whoever opens such a file runs
its code; our own loaders refuse it.
"""

from __future__ import annotations

import json
import re
import tempfile
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from torch_utils.cli import Group
from torch_utils.downloads import offline
from torch_utils.errors import importing, reason
from torch_utils.files import atomic_write, check_target, write_json
from torch_utils.hub import MISSING, WEIGHTS, hub_file, parse_hub

if TYPE_CHECKING:
    from torch import nn  # and networks.load where it is used: `--help` does not wait for torch

_TAGS = ("model_hub_mixin", "pytorch_model_hub_mixin", "fewstep")


def write_folder(net: nn.Module, folder: Path, name: str, schedules: tuple[str, ...] = ()) -> None:
    """Write what a repository on the hub holds: weights with configuration, config.json, a card, schedule files."""
    from networks.load import save_network

    sha256 = save_network(folder / WEIGHTS, net, net.info)
    write_json(folder / "config.json", net.config)
    for path in schedules:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        write_json(folder / Path(path).name, content)
    with atomic_write(folder / "README.md", "w") as file:
        file.write(_card(net, name, sha256, schedules))


def _card(net: nn.Module, name: str, sha256: str, schedules: tuple[str, ...]) -> str:
    lines = ["---", "library_name: fewstep", "tags:", *(f"- {tag}" for tag in _TAGS), "---", ""]
    lines += [
        f"# {net.config['class_name']}",
        "",
        f"Samples: {net.img_channels}x{net.img_resolution}x{net.img_resolution}",
    ]
    lines += [f"Conditions: {net.label_dim} classes" if getattr(net, "label_dim", 0) else "Conditions: none"]
    lines += [f"SHA-256 of the tensors: `{sha256}`", "", "```", f"python generate.py --network=hf:{name}", "```"]
    lines += [f"\nSchedule file: `{Path(path).name}`" for path in schedules]
    return "\n".join(lines) + "\n"


def push(source: str, target: str, schedules: tuple[str, ...] = (), private: bool = False) -> str:
    """Upload a network and schedule files; returns the address of the repository.

    Raises:
        ValueError: no such network, huggingface_hub is missing, no connection or no permission; one sentence.
    """
    from networks.load import load_network

    repo, _, revision = parse_hub(target)
    with importing(MISSING):
        from huggingface_hub import HfApi
    net = load_network(source)
    with tempfile.TemporaryDirectory() as folder:
        write_folder(net, Path(folder), repo, schedules)
        if offline():
            raise ValueError(f"{target} is on the hub, and HF_HUB_OFFLINE forbids to go there")
        try:
            api = HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, revision=revision, commit_message="Upload network")
        except Exception as error:
            raise ValueError(
                f"{target} cannot be written ({reason(error)}): log in with 'hf auth login' and check the name"
            ) from None
    return f"https://huggingface.co/{repo}"


# Files that need none of our code.

_PACKAGES = ("networks", "samplers", "torch_utils")


def _open_network(root: str, sources: dict, config: dict, state: dict) -> Any:
    """Runs where the file is opened: modules out of source text, below a name of their own, then the network."""
    import importlib.abc
    import importlib.machinery
    import sys

    class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name, path=None, target=None):  # noqa: ANN001, ANN202
            return importlib.machinery.ModuleSpec(name, self, is_package=not sources[name]) if name in sources else None

        def create_module(self, spec):  # noqa: ANN001, ANN202
            return None

        def exec_module(self, module):  # noqa: ANN001, ANN202
            module.__file__ = f"<{module.__name__}>"
            exec(compile(sources[module.__name__], module.__file__, "exec"), module.__dict__)

    if root not in sys.modules:
        sys.meta_path.append(Finder())
    net = importlib.import_module(root + ".networks.table").build(**config)
    net.load_state_dict(state, strict=True)
    return net.eval().requires_grad_(False)


def bundle(net: nn.Module) -> Any:
    """An object that pickles as the network and everything it needs: opened, it is the network itself."""
    root, here = "fewstep_shared", Path(__file__).parents[1]
    ours = re.compile(rf"^(\s*)(from|import) (?=({'|'.join(_PACKAGES)})\b)", re.MULTILINE)
    sources = {root: ""}
    for package in _PACKAGES:
        for path in sorted((here / package).rglob("*.py")):
            name = ".".join([root, *path.relative_to(here).with_suffix("").parts])
            if path.name == "__init__.py":  # packages are empty: what is wanted is imported by its full name
                sources[name.removesuffix(".__init__")] = ""
            else:
                sources[name] = ours.sub(rf"\1\2 {root}.", path.read_text(encoding="utf-8"))
    opener = types.FunctionType(_open_network.__code__, {}, "open_network")  # of no module: pickled by value
    opener.__module__ = "fewstep_opener"
    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    return _Shared(opener, (root, sources, net.config, state))


class _Shared:
    """Pickles as a call of `opener`."""

    def __init__(self, opener: types.FunctionType, arguments: tuple) -> None:
        self.call = (opener, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def export(source: str, out: str | Path, format: str) -> Path:
    """Write a network as .safetensors, or as a dill file that needs none of our code; atomically.

    Raises:
        ValueError: no such network, or another format.
    """
    from networks.load import load_network, save_network

    out = Path(out)
    if format == "safetensors" and out.suffix != ".safetensors":
        out = out.with_name(out.name + ".safetensors")
    check_target(out, source)
    net = load_network(source)
    if format == "safetensors":
        save_network(out, net, net.info)
        return out
    if format != "dill":
        raise ValueError(f"there is no format '{format}': choose safetensors or dill")
    import dill

    with atomic_write(out) as file:
        dill.dump(bundle(net), file, recurse=True)
    return out


def load_unsafe(path: str | Path) -> nn.Module:
    """The network in a dill file, by running the code that the file carries: for files of people you trust alone.

    Raises:
        ValueError: the file holds something else, or cannot be opened; names it.
    """
    import dill
    from torch import nn

    try:
        with open(path, "rb") as file:
            net = dill.load(file)
    except Exception as error:  # anything may happen in foreign code
        raise ValueError(f"{path} cannot be opened ({reason(error)})") from error
    if not isinstance(net, nn.Module):
        raise ValueError(f"{path} holds a {type(net).__name__}, not a network")
    return net


@click.group(cls=Group)
def main() -> None:
    """Share networks: on the hub, or as files that need none of this project."""


@main.command("push")
@click.argument("network", metavar="NET")
@click.argument("target", metavar="hf:OWNER/NAME[@REVISION]")
@click.option("--schedule", "schedules", multiple=True, metavar="FILE.json", help="A schedule file to go with it.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
def push_command(network: str, target: str, schedules: tuple[str, ...], private: bool) -> None:
    """Upload NET with its configuration, a card and schedule files to the Hugging Face hub."""
    click.echo(push(network, target, schedules, private))


@main.command("pull")
@click.argument("source", metavar="hf:OWNER/NAME[/FILE][@REVISION]")
@click.argument("out", metavar="OUT", type=click.Path())
def pull_command(source: str, out: str) -> None:
    """Fetch a file from the Hugging Face hub and write it to OUT."""
    check_target(out)
    content = hub_file(source).read_bytes()
    with atomic_write(out) as file:
        file.write(content)
    click.echo(out)


@main.command("export")
@click.argument("network", metavar="NET")
@click.argument("out", metavar="OUT", type=click.Path())
@click.option("--format", type=click.Choice(["safetensors", "dill"]), default="safetensors", show_default=True)
def export_command(network: str, out: str, format: str) -> None:
    """Write NET to OUT: .safetensors, or dill, which dill.load opens where PyTorch is installed and this project not.

    A dill file runs the code that it carries when it is opened.
    """
    click.echo(export(network, out, format))


if __name__ == "__main__":
    main()
