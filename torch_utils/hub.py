"""Names of files on the Hugging Face hub, and their cached copies (extra `hub`)."""

from __future__ import annotations

import re
from pathlib import Path

from torch_utils.downloads import offline
from torch_utils.errors import importing, reason

WEIGHTS = "model.safetensors"
MISSING = "the hub needs the package huggingface_hub: pip install 'fewstep[hub]'"
_PART = r"(?!\.{1,2}(?:[/@]|$))[\w.-]+"  # of a path, and none that leads elsewhere
_PATH = rf"{_PART}(?:/{_PART})*"
_HUB = re.compile(rf"hf:(?P<repo>{_PART}/{_PART})(?:/(?P<file>{_PATH}))?(?:@(?P<revision>{_PATH}))?")


def parse_hub(name: str) -> tuple[str, str, str | None]:
    """`hf:OWNER/NAME[/FILE][@REVISION]` as repository, file and revision.

    Raises:
        ValueError: a name that is not so.
    """
    match = _HUB.fullmatch(name)
    if match is None:
        raise ValueError(f"'{name}' names nothing on the hub: write hf:OWNER/NAME, hf:OWNER/NAME/FILE or ...@REVISION")
    return match["repo"], match["file"] or WEIGHTS, match["revision"]


def hub_file(name: str) -> Path:
    """The cached copy of a file on the hub, fetched on first use unless HF_HUB_OFFLINE is set.

    Raises:
        ValueError: huggingface_hub is missing, no such file, no connection, a link that leaves the cache of this
            repository; one sentence.
    """
    repo, file, revision = parse_hub(name)
    with importing(MISSING):
        from huggingface_hub import hf_hub_download
    try:
        found = Path(hf_hub_download(repo_id=repo, filename=file, revision=revision, local_files_only=offline()))
    except Exception as error:  # the hub's own, requests' and the system's errors have no common class
        raise ValueError(
            f"{name} cannot be had from the hub ({reason(error)}): check the name and the connection, "
            "or fetch the file on another machine and give its path"
        ) from None
    folder = found.parents[file.count("/")]
    root = folder.parents[1] if folder.parent.name == "snapshots" else folder  # snapshots link to blobs beside them
    if not found.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{name} is a link out of {root}, to {found.resolve()}: remove that folder and fetch it again")
    return found
