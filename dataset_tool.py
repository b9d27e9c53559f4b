"""Turn public data sets into one data set file: a zip or a folder of equal PNG images with labels, or a series.

The format of images is the one published EDM code reads and writes; `docs/data.md` describes it, docs/series.md that of
series.
"""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.begin()  # before torch starts its threads

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click
from tqdm import tqdm

from torch_utils.cli import Command
from torch_utils.files import check_target
from torch_utils.options import OptionGroup, opt, options_of, refuse
from training.data.originals import Source
from training.data.series_files import import_angles, import_box
from training.data.sources import LAYOUTS, open_source
from training.data.transforms import FILTERS, TRANSFORMS, make_transform
from training.data.writer import Summary, check_destination, convert

SERIES = {"box": "NetCDF maps over time, cut to --lat and --lon", "angles": "an array of dihedral angles (.npy, .npz)"}
NETCDF = (".nc", ".nc4")

EPILOG = """\b
Layouts (--layout):
{layouts}

\b
Examples:
  # 1797 real images, nothing to download
  python dataset_tool.py --source=digits --dest=datasets/digits-8x8.zip
\b
  # crops of three photographs, nothing to download
  python dataset_tool.py --source=photos --dest=datasets/photos-32x32.zip
\b
  # CIFAR-10 as downloaded
  python dataset_tool.py --source=downloads/cifar-10-python.tar.gz --dest=datasets/cifar10-32x32.zip
\b
  # FFHQ, AFHQv2 and ImageNet at 64x64
  python dataset_tool.py --source=downloads/images1024x1024 --layout=ffhq \\
      --dest=datasets/ffhq-64x64.zip --resolution=64x64
  python dataset_tool.py --source=downloads/afhqv2 --layout=afhqv2 --split=all \\
      --dest=datasets/afhqv2-64x64.zip --resolution=64x64
  python dataset_tool.py --source=downloads/imagenet/ILSVRC/Data/CLS-LOC/train \\
      --dest=datasets/imagenet-64x64.zip --resolution=64x64 --transform=center-crop
\b
  # any folder of pictures; folders below it become classes
  python dataset_tool.py --source=pictures --dest=datasets/pictures.zip --resolution=32x32 --transform=center-crop
\b
  # series: a box of maps, angles of a molecule
  python dataset_tool.py --source=sst.day.mean.nc --dest=datasets/box.npz --lat=-7.5,7.5 --lon=190,205 --variable=sst
  python dataset_tool.py --source=dihedrals.npy --layout=angles --dest=datasets/peptide.npz
""".format(
    layouts="\n".join(
        f"  {name:<9} {layout.help}" + (f" (--split={'|'.join(layout.splits)})" if layout.splits else "")
        for name, layout in LAYOUTS.items()
    )
    + "".join(f"\n  {name:<9} {line}" for name, line in SERIES.items())
)


class Size(click.ParamType):
    """`64x64` or `64,64` -> (width, height) in pixels."""

    name = "WxH"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"\s*(\d{1,5})\s*[x,]\s*(\d{1,5})\s*", value) if isinstance(value, str) else None
        if match is None or not (int(match[1]) and int(match[2])):
            self.fail(f"'{value}' is not a size in pixels: write width x height, for example 64x64", param, ctx)
        return int(match[1]), int(match[2])


class Ends(click.ParamType):
    """`-7.5,7.5` -> both numbers, the lower one first."""

    name = "LOW,HIGH"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        try:
            low, high = (float(v) for v in value.split(","))
        except ValueError:
            self.fail(f"'{value}' is not two numbers, the lower one first, for example -7.5,7.5", param, ctx)
        if not low <= high:
            self.fail(f"'{value}' goes from {low:g} down to {high:g}: give the lower one first", param, ctx)
        return low, high


@dataclass(frozen=True, kw_only=True)
class SourceAndDest:
    group: ClassVar = OptionGroup("Source and data set", "What is read, and the file that is written.", rank=0)

    source: str = opt(
        None, "Folder or archive, 'digits', 'photos', 'photos64', or shapes:boxes[:size=N][:seed=S]", required=True,
        metavar="PATH|digits|photos|shapes:boxes",
    )  # fmt: skip
    dest: str = opt(
        None, "File ending in .zip (an existing one is replaced at the end, in one step) or an empty or new folder; of "
        "a series and of shapes a file ending in .npz", metavar="PATH", required=True,
    )  # fmt: skip
    layout: str = opt(
        "auto", "How the source is arranged; auto goes by its name. The list is below",
        choices=["auto", *LAYOUTS, *SERIES],
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pictured:
    group: ClassVar = OptionGroup("Images", "Sources of images: which of them, and how they become squares.", rank=1)

    resolution: tuple[int, int] | None = opt(None, "Width and height of the images to write, in pixels", type=Size())
    transform: str | None = opt(
        None, "Crop to --resolution; without it images are resized and their aspect ratio is not kept",
        choices=list(TRANSFORMS),
    )  # fmt: skip
    labels: str = opt(
        "auto", "auto: what the layout has; folders: the top-level folder is the class, in zips too; none: no labels",
        choices=["auto", "folders", "none"],
    )  # fmt: skip
    max_images: int | None = opt(None, "Read only the first N images or shapes", metavar="N", at_least=1)
    split: str | None = opt(
        None, "Part of the data, for layouts that name --split below [default: train]", metavar="NAME"
    )
    resize_filter: str | None = opt(None, "Filter for resizing [default: lanczos]", choices=list(FILTERS))
    background: str | None = opt(
        None, "Put this colour behind transparent images, which are otherwise refused", choices=["white", "black"]
    )
    exif: str = opt(
        "ignore", "Turn images as the orientation in their EXIF data asks, or take them as stored",
        choices=["apply", "ignore"],
    )  # fmt: skip
    any_size: bool = opt(False, "Accept square images whose size is no power of two", flag=True)
    skip_broken: bool = opt(
        False, "Leave out images that cannot be read or do not fit, with a notice each, instead of stopping. Their "
        "numbers stay unused", flag=True,
    )  # fmt: skip
    workers: int | None = opt(
        None, "Threads; the output does not depend on it [default: number of cores]", metavar="N", at_least=1,
        at_most=256,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Latents:
    group: ClassVar = OptionGroup("Latents", "With --encode: what an autoencoder makes of the images.", rank=2)

    encode: str | None = opt(
        None, "Write latents instead of images, as .npy files: what this autoencoder makes of them. A file of its own, "
        "a latent model (a file or a name of docs/models.md), or diffusers:DIR", metavar="NETWORK",
    )  # fmt: skip
    encode_config: str | None = opt(
        None, "Settings of NETWORK that its tensors do not show: a JSON or YAML file", metavar="FILE"
    )
    encode_flips: bool = opt(False, "Latents of mirrored images too", flag=True)
    encode_dtype: str = opt("float32", "Number format of the latents", choices=["float16", "float32"])
    encode_batch: int = opt(16, "Images at once", metavar="N", at_least=1)
    device: str = opt("auto", "Where latents are computed: cpu, cuda or auto", metavar="DEVICE")


@dataclass(frozen=True, kw_only=True)
class Maps:
    group: ClassVar = OptionGroup("Maps", "With --layout=box: which part of the maps is kept.", rank=3)

    lat: tuple[float, float] | None = opt(None, "Latitudes, in the degrees of the file [default: all]", type=Ends())
    lon: tuple[float, float] | None = opt(None, "Longitudes, in the degrees of the file [default: all]", type=Ends())
    variable: str | None = opt(None, "The variable, where there are several over time", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class Angles:
    group: ClassVar = OptionGroup("Angles", "With --layout=angles: what the numbers are.", rank=4)

    angles: str | None = opt(None, "Their unit [default: auto]", choices=["auto", "degrees", "radians"])
    axes: str | None = opt(
        None, "N trajectories, T frames, D angles, in their order [default: TD or NTD]", metavar="LETTERS"
    )


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(Angles, Maps, Latents, Pictured, SourceAndDest):
    """All options of `dataset_tool.py`."""


OWNERS = {Pictured: "images", Latents: "images", Maps: "--layout=box", Angles: "--layout=angles"}


@click.command(cls=Command, epilog=EPILOG, context_settings={"show_default": True})
@options_of(DatasetOptions)
def main(options: DatasetOptions) -> None:
    """Convert images or a series from SOURCE to a data set at DEST for training, FID and forecasts.

    All images of a data set are square, of one size (a power of two) and of one kind (gray or RGB). Palette, CMYK and
    16 bit images are converted. The output is the same, byte for byte, on any number of cores, and appears whole or not
    at all.
    """
    layout = options.layout
    if options.source.startswith("shapes:"):
        refuse(options, ["layout"], f"is for files, and {options.source} is made here")
        layout = "shapes"
    elif layout == "auto" and Path(options.source).suffix in NETCDF:
        layout = "box"
    _refuse_others(layout)
    if layout in ("shapes", *SERIES):
        check_target(options.dest, options.source)
        if not options.dest.endswith(".npz"):
            what = "shapes" if layout == "shapes" else "a series"
            raise ValueError(f"--dest={options.dest} must end in .npz, the file of {what}")
    if layout == "shapes":
        click.echo(_shapes(options))
    elif layout == "box":
        extent = {"lat": options.lat, "lon": options.lon, "variable": options.variable}
        click.echo(import_box(options.source, options.dest, **extent))
    elif layout == "angles":
        click.echo(import_angles(options.source, options.dest, options.angles or "auto", options.axes))
    else:
        _images(options)


def _refuse_others(layout: str) -> None:
    """ValueError where the command line gives options of another kind of data than `layout`."""
    this = f"--layout={layout}" if layout in SERIES else "shapes" if layout == "shapes" else "images"
    context = click.get_current_context()
    for cls, owner in OWNERS.items():
        for name in cls.__annotations__:
            given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
            if given and owner != this and (this, name) != ("shapes", "max_images"):
                raise ValueError(f"--{name.replace('_', '-')} belongs to {owner}, not to {this}: leave it out")


def _shapes(options: DatasetOptions) -> str:
    """An array file of generated shapes; returns what to say."""
    from training.data.shapes import read_shapes, write_shapes  # with PyTorch, which images alone do not need

    shapes = read_shapes(options.source)
    if options.max_images is not None:
        first = slice(options.max_images)
        shapes = shapes._replace(parts=shapes.parts[first], labels=shapes.labels[first])
    Path(options.dest).parent.mkdir(parents=True, exist_ok=True)
    write_shapes(options.dest, shapes)
    return f"Wrote {len(shapes.parts)} shapes of at most {shapes.parts.shape[1]} parts to {options.dest}"


def _images(options: DatasetOptions) -> None:
    """A data set of images, or of their latents."""
    function = make_transform(options.transform, options.resolution, options.resize_filter)
    target, encode = check_destination(options.dest, options.source), options.encode is not None
    if encode and target.suffix != ".zip":
        raise ValueError(f"--encode writes a zip of latents, and --dest={options.dest} does not end in .zip")
    if not encode and (options.encode_config is not None or options.encode_flips):
        raise ValueError("--encode-config and --encode-flips shape what --encode writes: give --encode as well")
    pixels = target.with_name(f".{target.stem}-pixels.zip") if encode else target
    opened = open_source(options.source, layout=options.layout, split=options.split, labels=options.labels)
    click.echo("\n".join((opened.description, *opened.notes)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's remarks about damaged metadata name no file, tear the progress bar
            summary = convert(
                opened, pixels, function, background=options.background, exif=options.exif,
                max_images=options.max_images, skip_broken=options.skip_broken, any_size=options.any_size,
                workers=options.workers or os.cpu_count() or 1,
            )  # fmt: skip
    finally:
        opened.close()
    click.echo(_report(summary, "a temporary file" if encode else options.dest, options.exif, opened))
    if encode:
        try:
            click.echo(_encode(options, pixels, target))
        finally:
            pixels.unlink(missing_ok=True)


def _encode(options: DatasetOptions, pixels: Path, dest: Path) -> str:
    """Latents of the images in `pixels`; returns what to say."""
    from networks.load import load_autoencoder  # with PyTorch, as above
    from torch_utils.distributed import process_group
    from training.data.image_dataset import ImageDataset
    from training.data.latents import encode_dataset

    autoencoder = load_autoencoder(options.encode, verbose=True, config=options.encode_config)
    dataset = ImageDataset(pixels, use_labels=True)
    how = {"flips": options.encode_flips, "dtype": options.encode_dtype, "batch": options.encode_batch}
    try:
        with process_group(options.device) as where, tqdm(total=len(dataset), unit="img", desc="Encoding") as bar:
            about = encode_dataset(dataset, autoencoder, dest, **how, device=where, progress=bar.update)
    finally:
        dataset.close()
    shape = "x".join(map(str, about["shape"]))
    mirrors = " and their mirrors" * options.encode_flips
    return f"Wrote {about['kind']} {shape} of {len(dataset)} images{mirrors} to {dest}"


def _images_of(n: int, one: str = "", more: str = "") -> str:
    """A number of images, and a verb that goes with it."""
    return f"{n} image{'s' * (n != 1)} {one if n == 1 else more}".rstrip()


def _report(summary: Summary, dest: str, exif: str, source: Source) -> str:
    width, height, channels = summary.shape
    parts = [f"Wrote {_images_of(summary.written)} ({width}x{height}, {'RGB' if channels == 3 else 'gray'}) to {dest}"]
    parts.append("with labels" if summary.labelled else "without labels")
    if summary.dropped:
        parts.append(f"{summary.dropped} {'was' if summary.dropped == 1 else 'were'} too small for the transform")
    if summary.skipped:
        parts.append(f"{summary.skipped} {'was' if summary.skipped == 1 else 'were'} skipped")
    lines = []
    if summary.turned:
        done = "turned upright" if exif == "apply" else "taken as stored (--exif=apply turns them upright)"
        lines.append(f"EXIF orientation: {_images_of(summary.turned, 'was', 'were')} {done}")
    if summary.several:
        lines.append(f"Several frames: the first of {_images_of(summary.several, 'was', 'were')} taken")
    if source.repeated:
        left = _images_of(source.repeated, "was", "were")
        lines.append(f"Equal names: {left} left out for a later one of the same name")
    if summary.unlabelled:
        n, all_ = summary.unlabelled, summary.written
        lacks = f"{n} of {all_} images {'has' if n == 1 else 'have'} no label in {source.label_file}"
        parts[1] += f" ({lacks}, first {summary.first_unlabelled})"
    return "\n".join([*lines, ", ".join(parts)])


if __name__ == "__main__":
    main()
