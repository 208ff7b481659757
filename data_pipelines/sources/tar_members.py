"""Members of tar archives: located without unpacking, so that audio is read in place."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.audio.clips import AudioSlice, Dropped


def tar_members(path: Path) -> Iterator[AudioSlice | Dropped]:
    """Yields the regular files of an uncompressed tar archive, with names as they are in it.

    Links, devices and sparse files are bad items: nothing is read that is not in the archive. A damaged archive ends
    with a bad item.
    """
    location = str(path)
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # which would take a kilobyte each
                if member.isreg() and not member.issparse():
                    yield AudioSlice(location, member.name, member.offset_data, member.size)
                elif not member.isdir():
                    detail = f"{path}:{member.name}: a link or special file; write the archive again with its content"
                    yield Dropped(f"{path.name}:{member.name}", "no regular file in the archive", True, detail)
    except (OSError, tarfile.TarError, ValueError) as error:
        remedy = "unpack it with gunzip" if re.search(r"gz$", path.name) else "it may be damaged: copy it again"
        yield Dropped(path.name, "unreadable archive", True, f"{path}: {error}; {remedy}")
