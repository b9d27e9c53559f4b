"""Turn public data sets into one data set file: a zip or a folder of equal PNG images with labels, or a series.

The format of images is the one published EDM code reads and writes; `docs/data.md` describes it, docs/series.md that of
series.
"""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.tune()  # before torch starts its threads

import os
import re
import warnings
from pathlib import Path

import click
from tqdm import tqdm

from torch_utils.cli import Command
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


@click.command(cls=Command, epilog=EPILOG, context_settings={"show_default": True})
@click.option(
    "--source",
    required=True,
    metavar="PATH|digits|photos|shapes:boxes",
    help="Folder or archive, 'digits', 'photos', or shapes:boxes[:size=N][:seed=S].",
)
@click.option(
    "--dest", required=True, metavar="PATH",
    help="File ending in .zip (an existing one is replaced at the end, in one step) or an empty or new folder; of a "
    "series and of shapes a file ending in .npz.",
)  # fmt: skip
@click.option(
    "--layout", type=click.Choice(["auto", *LAYOUTS, *SERIES]), default="auto",
    help="How the source is arranged; auto goes by its name. The list is below.",
)  # fmt: skip
@click.option(
    "--split", metavar="NAME", help="Part of the data, for layouts that name --split below.  [default: train]"
)
@click.option(
    "--labels", type=click.Choice(["auto", "folders", "none"]), default="auto",
    help="auto: what the layout has; folders: the top-level folder is the class, in zips too; none: no labels.",
)  # fmt: skip
@click.option("--max-images", type=click.IntRange(min=1), metavar="N", help="Read only the first N images.")
@click.option("--resolution", type=Size(), help="Width and height of the images to write, in pixels.")
@click.option(
    "--transform", type=click.Choice(list(TRANSFORMS)),
    help="Crop to --resolution; without it images are resized and their aspect ratio is not kept.",
)  # fmt: skip
@click.option("--resize-filter", type=click.Choice(list(FILTERS)), help="Filter for resizing.  [default: lanczos]")
@click.option(
    "--background", type=click.Choice(["white", "black"]),
    help="Put this colour behind transparent images, which are otherwise refused.",
)  # fmt: skip
@click.option(
    "--exif", type=click.Choice(["apply", "ignore"]), default="ignore",
    help="Turn images as the orientation in their EXIF data asks, or take them as stored.",
)  # fmt: skip
@click.option("--any-size", is_flag=True, help="Accept square images whose size is no power of two.")
@click.option(
    "--skip-broken", is_flag=True,
    help="Leave out images that cannot be read or do not fit, with a notice each, instead of stopping. "
    "Their numbers stay unused.",
)  # fmt: skip
@click.option(
    "--encode", metavar="NETWORK", help="Write latents instead of images, as .npy files: what this autoencoder makes "
    "of them. A file of its own, a latent model (a file or a name of docs/models.md), or diffusers:DIR.",
)  # fmt: skip
@click.option("--encode-config", metavar="FILE", help="What the tensors of NETWORK do not show: a JSON or YAML file.")
@click.option("--encode-flips", is_flag=True, help="Latents of mirrored images too.")
@click.option(
    "--encode-dtype", type=click.Choice(["float16", "float32"]), default="float32", help="Number format of the latents."
)
@click.option("--encode-batch", type=click.IntRange(min=1), default=16, metavar="N", help="Images at once.")
@click.option("--lat", type=Ends(), help="box: latitudes, in the degrees of the file.  [default: all]")
@click.option("--lon", type=Ends(), help="box: longitudes, in the degrees of the file.  [default: all]")
@click.option("--variable", metavar="NAME", help="box: the variable, where there are several over time.")
@click.option(
    "--angles", type=click.Choice(["auto", "degrees", "radians"]), help="angles: their unit.  [default: auto]"
)
@click.option("--axes", metavar="LETTERS", help="angles: N trajectories, T frames, D angles.  [default: TD or NTD]")
@click.option("--device", default="auto", metavar="DEVICE", help="Where latents are computed: cpu, cuda or auto.")
@click.option(
    "--workers", type=click.IntRange(1, 256), metavar="N", default=lambda: os.cpu_count() or 1,
    show_default="number of cores", help="Threads; the output does not depend on it.",
)  # fmt: skip
def main(
    source: str,
    dest: str,
    layout: str,
    split: str | None,
    labels: str,
    max_images: int | None,
    resolution: tuple[int, int] | None,
    transform: str | None,
    resize_filter: str | None,
    background: str | None,
    exif: str,
    any_size: bool,
    skip_broken: bool,
    encode: str | None,
    encode_config: str | None,
    encode_flips: bool,
    encode_dtype: str,
    encode_batch: int,
    lat: tuple[float, float] | None,
    lon: tuple[float, float] | None,
    variable: str | None,
    angles: str | None,
    axes: str | None,
    device: str,
    workers: int,
) -> None:
    """Convert images or a series from SOURCE to a data set at DEST for training, FID and forecasts.

    All images of a data set are square, of one size (a power of two) and of one kind (gray or RGB). Palette, CMYK and
    16 bit images are converted. The output is the same, byte for byte, on any number of cores, and appears whole or not
    at all.
    """
    if source.startswith("shapes:"):
        click.echo(_shapes(source, dest, max_images))
        return
    if layout == "auto" and Path(source).suffix in NETCDF:
        layout = "box"
    _refuse_others(layout)
    if layout == "box":
        click.echo(import_box(source, dest, lat=lat, lon=lon, variable=variable))
        return
    if layout == "angles":
        click.echo(import_angles(source, dest, angles or "auto", axes))
        return
    function = make_transform(transform, resolution, resize_filter)
    target = check_destination(dest, source)
    if encode is not None and target.suffix != ".zip":
        raise ValueError(f"--encode writes a zip of latents, and --dest={dest} does not end in .zip")
    if encode is None and (encode_config is not None or encode_flips):
        raise ValueError("--encode-config and --encode-flips shape what --encode writes: give --encode as well")
    pixels = target if encode is None else target.with_name(f".{target.stem}-pixels.zip")
    opened = open_source(source, layout=layout, split=split, labels=labels)
    click.echo("\n".join((opened.description, *opened.notes)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # PIL's remarks about damaged metadata name no file and tear the progress bar
            summary = convert(
                opened,
                pixels,
                function,
                background=background,
                exif=exif,
                max_images=max_images,
                skip_broken=skip_broken,
                any_size=any_size,
                workers=workers,
            )
    finally:
        opened.close()
    click.echo(_report(summary, dest if encode is None else "a temporary file", exif, opened.label_file))
    if encode is not None:
        try:
            click.echo(_encode(pixels, target, encode, encode_config, encode_flips, encode_dtype, encode_batch, device))
        finally:
            pixels.unlink(missing_ok=True)


def _refuse_others(layout: str) -> None:
    """Options of other kinds of data, given on the command line; ValueError."""
    box, angles = {"lat", "lon", "variable"}, {"angles", "axes"}
    context = click.get_current_context()
    given = {p.name for p in context.command.params if context.get_parameter_source(p.name).name == "COMMANDLINE"}
    given -= {"source", "dest", "layout"}
    own = {"box": box, "angles": angles}.get(layout)
    if wrong := sorted(given & (box | angles) if own is None else given - own):
        whose = {**dict.fromkeys(box, "--layout=box"), **dict.fromkeys(angles, "--layout=angles")}
        raise ValueError(
            f"--{wrong[0].replace('_', '-')} belongs to {whose.get(wrong[0], 'images')}, and the layout here is "
            f"{layout}: leave it out"
        )


def _shapes(source: str, dest: str, count: int | None) -> str:
    """An array file of generated shapes; returns what to say."""
    from training.data.shapes import read_shapes, write_shapes

    context = click.get_current_context()
    for name in context.params:
        given = context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
        if given and name not in ("source", "dest", "max_images"):
            raise ValueError(
                f"--{name.replace('_', '-')} is for images, and --source={source} has shapes: leave it out"
            )
    if not dest.endswith(".npz"):
        raise ValueError(f"--dest={dest} must end in .npz, the file of shapes")
    shapes = read_shapes(source)
    if count is not None:
        shapes = shapes._replace(parts=shapes.parts[:count], labels=shapes.labels[:count])
    Path(dest).parent.mkdir(parents=True, exist_ok=True)
    write_shapes(dest, shapes)
    return f"Wrote {len(shapes.parts)} shapes of at most {shapes.parts.shape[1]} parts to {dest}"


def _encode(
    pixels: Path, dest: Path, source: str, config: str | None, flips: bool, dtype: str, batch: int, device: str
) -> str:  # fmt: skip
    """Latents of the images in `pixels`; returns what to say."""
    from networks.load import load_autoencoder  # with PyTorch, which images alone do not need
    from torch_utils.distributed import process_group
    from training.data.image_dataset import ImageDataset
    from training.data.latents import encode_dataset

    autoencoder = load_autoencoder(source, verbose=True, config=config)
    dataset = ImageDataset(pixels, use_labels=True)
    try:
        with process_group(device) as where, tqdm(total=len(dataset), unit="img", desc="Encoding") as bar:
            about = encode_dataset(
                dataset, autoencoder, dest, flips=flips, dtype=dtype, batch=batch, device=where, progress=bar.update
            )
    finally:
        dataset.close()
    shape = "x".join(map(str, about["shape"]))
    return f"Wrote {about['kind']} {shape} of {len(dataset)} images{' and their mirrors' * flips} to {dest}"


def _report(summary: Summary, dest: str, exif: str, label_file: str) -> str:
    width, height, channels = summary.shape
    parts = [f"Wrote {summary.written} images ({width}x{height}, {'RGB' if channels == 3 else 'gray'}) to {dest}"]
    parts.append("with labels" if summary.labelled else "without labels")
    if summary.dropped:
        parts.append(f"{summary.dropped} were too small for the transform")
    if summary.skipped:
        parts.append(f"{summary.skipped} were skipped")
    lines = []
    if summary.turned:
        done = "were turned upright" if exif == "apply" else "were taken as stored (--exif=apply turns them upright)"
        lines.append(f"EXIF orientation: {summary.turned} images {done}")
    if summary.unlabelled:
        n, all_ = summary.unlabelled, summary.written
        lacks = f"{n} of {all_} images {'has' if n == 1 else 'have'} no label in {label_file}"
        parts[1] += f" ({lacks}, first {summary.first_unlabelled})"
    return "\n".join([*lines, ", ".join(parts)])


if __name__ == "__main__":
    main()
