"""Files of `torch.save` that hold more than tensors: training checkpoints of Lightning, and zip archives around them.

A Lightning checkpoint names classes of the training program (callbacks, configurations, schedulers). Here each becomes
an empty `Record`, whatever is put into it; only names of known packages may occur, and none is ever looked up. Of the
rest, the state dict counts.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch_utils.files import cache_directory, map_file
from torch_utils.pickles.foreign import Words, naming, read_foreign
from torch_utils.pickles.zip_directory import refuse_unsafe
from torch_utils.temporaries import temporary_beside

# Modules whose classes are read past, by how their names begin, and single names.
_PACKAGES = (
    "pytorch_lightning.", "lightning.", "lightning_fabric.", "lightning_utilities.", "omegaconf.", "ldm.", "taming.",
    "main.", "__main__.", "torch.optim.lr_scheduler.",
)  # fmt: skip
_NAMES = {
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype", "numpy.ndarray", "collections.defaultdict", "typing.Any", "argparse.Namespace",
    *(f"{m}.{n}" for m in ("builtins", "__builtin__") for n in ("dict", "list", "tuple", "int", "float", "str", "bool",
                                                                "frozenset", "set")),
}  # fmt: skip

MAX_MEMBER = 8 << 30  # bytes of a checkpoint inside an archive
MAX_MEMBERS = 100_000
MAX_RATIO = 200  # bytes out per byte in, over any 64 MiB
_BLOCK = 1 << 20
_WINDOW = 64 << 20
WANTED = "model.ckpt"


def read_archive(path: str | Path) -> Any:
    """The value of a file of `torch.save`, of either layout, with the objects of a training program left empty.

    Raises:
        ValueError: another format, a damaged or hostile file; names the file and the name that is not allowed.
    """
    foreign = read_foreign(path, TRAINING)
    if foreign.container == "pickle":
        raise ValueError(f"{path} is refused: it is not a file of torch.save")
    return foreign.value


def _inert(module: str, attribute: str) -> bool:
    """A class of a known package, by names that are plain identifiers throughout."""
    name = f"{module}.{attribute}"
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return False
    return name in _NAMES or f"{module}.".startswith(_PACKAGES)


TRAINING = Words(inert=_inert)


@contextmanager
def opened(path: str | Path) -> Iterator[Path]:
    """The file itself; of a zip archive that is no file of `torch.save`, its `model.ckpt`, taken out for a while.

    Raises:
        ValueError: an archive without that member, or one that is not safe to take apart; names the file.
    """
    if not is_distribution(path):
        yield Path(path)
        return
    with naming(path), zipfile.ZipFile(path) as archive:
        member = _member(archive)
    folder = cache_directory() / "extracted"
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_beside(folder / f"{Path(path).stem[:64]}.ckpt") as target:
        with naming(path), zipfile.ZipFile(path) as archive:
            _extract(archive, member, target)
        try:
            yield target
        finally:
            target.unlink(missing_ok=True)


def is_distribution(path: str | Path) -> bool:
    """Whether a file is a zip archive without the description of tensors that `torch.save` writes."""
    if bytes(map_file(path)[:4]) != b"PK\x03\x04":
        return False
    with naming(path):
        try:
            with zipfile.ZipFile(path) as archive:
                return not any(n.rsplit("/", 1)[-1] == "data.pkl" for n in archive.namelist())
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
            return False  # the strict reader of tensor archives says what is wrong


def _member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The one checkpoint in a distribution archive."""
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise ValueError(f"the archive has {len(infos)} members, more than the {MAX_MEMBERS} allowed")
    names = [info.filename for info in infos]
    for info in infos:
        refuse_unsafe(info.filename)
        if info.flag_bits & 1:
            raise ValueError(f"the archive member {info.filename[:80]!a} is encrypted")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"the archive member {info.filename[:80]!a} is a link or a device")
    if len(set(names)) < len(names):
        raise ValueError("the archive holds two members of one name")
    found = [i for i in infos if i.filename == WANTED] or [
        i for i in infos if i.filename.count("/") == 1 and i.filename.endswith(f"/{WANTED}")
    ]
    if len(found) != 1:
        listed = ", ".join(n[:40] for n in names[:5]).encode("ascii", "replace").decode()
        raise ValueError(f"the archive holds {len(found) or 'no'} {WANTED}, but {listed}: give the checkpoint itself")
    if found[0].file_size > MAX_MEMBER:
        raise ValueError(f"its {WANTED} has {found[0].file_size} bytes, more than the {MAX_MEMBER} allowed")
    return found[0]


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """Write one member, stopping where it grows beyond what was declared or what its compressed bytes can hold."""
    limit = MAX_RATIO * max(info.compress_size, 1) + _WINDOW
    written = 0
    try:
        with archive.open(info) as source, open(target, "wb") as file:
            while block := source.read(_BLOCK):
                written += len(block)
                if written > info.file_size or written > limit:
                    raise ValueError(f"its {WANTED} unpacks to more than it declares, or than its bytes can hold")
                file.write(block)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"its {WANTED} cannot be unpacked ({str(error)[:80]})") from None
    if written != info.file_size:
        raise ValueError(f"its {WANTED} has {written} bytes instead of the {info.file_size} declared")
    with open(target, "rb") as file:
        if file.read(4) == b"PK\x03\x04" and is_distribution(target):
            raise ValueError(f"its {WANTED} is an archive again: give the checkpoint itself")
