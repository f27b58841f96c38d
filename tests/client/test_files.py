"""Files that are whole or absent, whoever else writes them and however a block ends."""

from pathlib import Path

import pytest

from brats_ldm_client.files import TEMPORARY, whole_file
from support.common import no_file_above


def test_two_writers_of_a_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Two runs of training.phantom into one folder wrote to one temporary file."""
    path = tmp_path / "volume.nii.gz"
    with whole_file(path) as first, whole_file(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert sorted(tmp_path.glob(TEMPORARY)) == sorted((first, second))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("volume.nii.gz", "first")]


@pytest.mark.parametrize("sync", [False, True])
def test_an_error_names_the_file_and_leaves_what_was_there(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "note.txt"
    path.write_text("before")
    too_large = pytest.raises(OSError, match=r"File too large: '.*/note\.txt'$")
    with no_file_above(1000), too_large, whole_file(path, sync=sync) as temporary:
        temporary.write_bytes(bytes(5000))
    with pytest.raises(ValueError, match="of the caller"), whole_file(path, sync=sync) as temporary:
        raise ValueError("of the caller")
    with pytest.raises(FileNotFoundError, match=r"'/no/other\.txt'$"), whole_file(path, sync=sync):
        Path("/no/other.txt").read_text()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("note.txt", "before")]
    with pytest.raises(FileNotFoundError, match=r"'.*/none/note\.txt'$"), whole_file(tmp_path / "none" / "note.txt"):
        pass
