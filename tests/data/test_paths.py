"""Paths in tables as people have them: each is one file, or the run stops with a way out."""

from pathlib import Path

import pyarrow
import pytest
from PIL import Image

from xception_hub.data import paths as data_paths
from xception_hub.errors import DataError


def locate(
    paths: list[str], dataset: str, folders: list[Path], image_folder: Path | None
) -> tuple[list[str], list[str]]:
    column = pyarrow.chunked_array([pyarrow.array(paths, pyarrow.string())])
    files, notes = data_paths.locate(column, dataset, [str(place) for place in folders], image_folder)
    return files.to_pylist(), notes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ('cat/1.jpg', 'cat/2.jpg', 'dog/1.jpg', 'IMG_7.JPG', 'a.b.png', 'both.jpg', 'both.png', 'x y.png'):
        path = tmp_path / 'photos' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(path)
    return tmp_path / 'photos'


@pytest.mark.parametrize(
    ('written', 'file'),
    [
        ('cat/1.jpg', 'cat/1.jpg'), ('./cat/1.jpg', 'cat/1.jpg'), ('cat\\1.jpg', 'cat/1.jpg'), ('cat/1', 'cat/1.jpg'),
        ('cat\\1', 'cat/1.jpg'), ('a.b', 'a.b.png'), ('img_7.jpg', 'IMG_7.JPG'), ('IMG_7', 'IMG_7.JPG'),
        ('x y.png', 'x y.png'), ('CAT/2.JPG', 'cat/2.jpg'), ('2.jpg', 'cat/2.jpg'), ('2', 'cat/2.jpg'),
    ],
)  # fmt: skip
def test_ways_of_writing(written: str, file: str, folder: Path) -> None:
    files, notes = locate(['dog/1.jpg', written], 'table.csv', [folder], None)
    assert files == [str(folder / 'dog/1.jpg'), str(folder / file)]
    assert all(written in note for note in notes)


@pytest.mark.parametrize('root', ['/home/ann/photos', 'C:\\Users\\Ann', '../data', 'D:/x', '\\\\server\\share'])
def test_paths_of_another_place(root: str, folder: Path) -> None:
    """Their first parts are cut off, the same ones from all: a file that is missing stays missing."""
    slash = '\\' if '\\' in root else '/'
    paths = [f'{root}{slash}{name}' for name in (f'cat{slash}1.jpg', f'dog{slash}1.jpg', f'cow{slash}both.png')]
    with pytest.raises(DataError, match='--image-folder') as error:
        locate(paths, 'table.csv', [folder.parent], None)
    named = Path(str(error.value).rpartition('--image-folder ')[2].rstrip('.'))
    for place in (named, folder):
        files, notes = locate(paths, 'table.csv', [folder.parent], place)
        assert files[:2] == [str(folder / 'cat/1.jpg'), str(folder / 'dog/1.jpg')]
    assert 'both.png' in files[2] and not Path(files[2]).exists()
    assert notes == [f'2 images of table.csv are written with the path of another place, such as {paths[0]}.']


def test_a_missing_file_with_a_namesake(folder: Path) -> None:
    """What most paths have in common is cut off, whichever of them comes first."""
    paths = ['/old/cow/both.png', '/old/cat/1.jpg', '/old/dog/1.jpg', '/old/cow/x y.png']
    files, _ = locate(paths, 'table.csv', [folder.parent], folder)
    assert files == ['/old/cow/both.png', str(folder / 'cat/1.jpg'), str(folder / 'dog/1.jpg'), '/old/cow/x y.png']


def test_several_files_for_a_path(folder: Path) -> None:
    with pytest.raises(DataError, match=r"'both'.*both\.jpg.*both\.png"):
        locate(['both'], 'table.csv', [folder], None)
    assert locate(['both.png'], 'table.csv', [folder], None)[0] == [str(folder / 'both.png')]


def test_paths_as_they_stand(folder: Path) -> None:
    """URLs, rows without an image, whole paths; and some files that are missing."""
    paths = ['https://example.org/1.jpg', '', str(folder / 'cat/1.jpg'), 'cat/9.jpg']
    assert locate(paths, 'table.csv', [folder], None) == ([*paths[:3], str(folder / 'cat/9.jpg')], [])


def test_all_missing(folder: Path) -> None:
    """One sentence, not a line for each row."""
    for paths in (['q/1.bmp', '2.bmp', '3.bmp'], ['/old/q/1.bmp', '2.bmp', 'C:\\\\3.bmp']):
        with pytest.raises(DataError, match=f'3 images of t.csv.*{paths[0]}.*{folder}.*--image-folder'):
            locate(paths, 't.csv', [folder], None)
    with pytest.raises(DataError, match='--image-folder.*nowhere'):
        locate(['1.jpg'], 't.csv', [folder], folder / 'nowhere')


def test_where_they_are(folder: Path) -> None:
    """The message names the folder, and what it names works."""
    for paths, place in ((['old/1.jpg', 'old/2.jpg'], folder / 'cat'), (['cat/1.jpg'], folder)):
        with pytest.raises(DataError, match='--image-folder') as error:
            locate(paths, 't.csv', [folder.parent], None)
        assert str(error.value).endswith(f'--image-folder {place}.')
        files, _ = locate(paths, 't.csv', [folder.parent], place)
        assert all(Path(file).is_file() for file in files)


def test_links_in_a_circle(folder: Path) -> None:
    (folder / 'cat' / 'back').symlink_to(folder)
    assert locate(['cat/1'], 't.csv', [folder], None)[0] == [str(folder / 'cat/1.jpg')]
