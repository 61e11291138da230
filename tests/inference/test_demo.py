"""`xception-hub demo`: a page for visitors who may send anything, in a process of its own, over HTTP."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
from commands import call
from conftest import ROOT
from demo_page import code_of, demo
from forked import run_code
from patience import patience
from PIL import Image
from port_a_keras_model import Checkpoint
from small_images import odd_images

from xception_hub.inference.predictor import Predictor

pytest.importorskip('gradio', reason="needs gradio: pip install -e '.[test-all]'")
import httpx

from xception_hub.inference.demo import Demo, app

pytestmark = pytest.mark.needs('gradio')


@pytest.fixture(scope='module')
def page(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page for the converted model."""
    with demo(tmp_path_factory.mktemp('page'), converted) as address:
        yield address


@pytest.fixture(scope='module')
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of another architecture, of three classes."""
    directory = tmp_path_factory.mktemp('small') / 'resnet'
    model, names = timm.create_model('test_resnet', num_classes=3), ['cup', 'fork', 'glass']
    timm.models.save_for_hf(model, directory, model_config=dict(label_names=names), safe_serialization=True)
    return directory


@pytest.fixture
def another(small: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a second page, of another architecture, for all who reach this machine."""
    with demo(tmp_path, small, '--host', '0.0.0.0') as address:
        yield address


def upload(page: str, name: str, content: bytes) -> str:
    """The path by which the page knows a file that was sent."""
    answer = httpx.post(f'{page}/gradio_api/upload', files=[('files', (name, content))], timeout=60)
    answer.raise_for_status()
    return answer.json()[0]


def answers(page: str, *paths: str) -> str | None:
    """The page's answer in HTML; None if it answers by an error."""
    files = [{'path': path, 'meta': {'_type': 'gradio.FileData'}} for path in paths]
    event = httpx.post(f'{page}/gradio_api/call/answer', json={'data': [files]}, timeout=60).json()['event_id']
    lines = httpx.get(f'{page}/gradio_api/call/answer/{event}', timeout=patience(60)).text.splitlines()
    kind, data = (re.sub(r'^\w+: ', '', line) for line in lines[-3 if lines[-1] == '' else -2 :][:2])
    return json.loads(data)[0] if kind == 'complete' else None


def test_says_what_predict_says(page: str, converted: Path, checkpoint: Checkpoint) -> None:
    """Names and probabilities in their order, the picture that the network sees, and where it looked."""
    photos = [photo for photo in checkpoint.photos if photo.stem in checkpoint.labels][:2]
    answer = answers(page, *(upload(page, photo.name, photo.read_bytes()) for photo in photos))
    assert answer is not None
    for article, row in zip(answer.split('</article>'), Predictor(str(converted)).predict(photos), strict=False):
        found = re.findall(r'<li><span>(.*?)</span>.*?<data value="(.*?)">', article)
        assert [label for label, _ in found] == [label for label, _ in json.loads(row['top'])]
        assert [float(value) for _, value in found] == pytest.approx([p for _, p in json.loads(row['top'])], abs=1e-5)
        assert article.count('<img src="data:image/png') == 2 and f'Heat map for {row["label"]}' in article
        assert re.search(rf'Answered in [\d.]+ s by {converted.name}, engine eager\. Explained in', article)
    assert str(converted.parent) not in answer


def test_what_is_no_photo(page: str, tmp_path: Path, checkpoint: Checkpoint) -> None:
    """Each has a sentence; the photo beside them is answered, and the page goes on."""
    Image.new('L', (8000, 8000)).save(tmp_path / 'huge.png')
    frames = [Image.new('RGB', (90, 80), colour) for colour in ('red', 'green')]
    frames[0].save(tmp_path / 'moving.gif', save_all=True, append_images=frames[1:])
    truncated = checkpoint.photos[0].read_bytes()[:2000]
    sent = {'huge.png': (tmp_path / 'huge.png').read_bytes(), 'words.txt': b'words', 'half.jpg': truncated}
    sent |= {'moving.gif': (tmp_path / 'moving.gif').read_bytes(), '<b>.jpg': checkpoint.photos[0].read_bytes()}
    answer = answers(page, *(upload(page, name, content) for name, content in sent.items()))
    assert answer is not None
    huge, words, half, moving, photo, _ = answer.split('</article>')
    assert 'Not answered: 8000x8000 pixels, of 33554432 at most.' in huge
    assert 'Not answered: no image of a known format.' in words
    assert 'Not answered: damaged: ' in half
    assert '<meter' in moving and '<meter' in photo and '<b>' not in photo
    assert answers(page, *[upload(page, 'words.txt', b'words')] * 9).count('<article') == 8  # type: ignore[union-attr]


def test_names_no_option(tmp_path: Path, small: Path) -> None:
    """Visitors can pass none."""
    model = timm.create_model('test_vit', num_classes=2, img_size=96)
    timm.models.save_for_hf(model, tmp_path / 'vit', model_config=dict(label_names=['a', 'b']), safe_serialization=True)
    for name in ('RGB', '12 bits'):
        (tmp_path / f'{name}.png').write_bytes(odd_images()[name])
    answer = Demo(str(tmp_path / 'vit')).answer([str(tmp_path / 'RGB.png')])
    assert 'Not explained: this model has no feature maps.' in answer
    answer = Demo(str(small)).answer([str(tmp_path / '12 bits.png')])
    assert 'Not answered: grey values up to' in answer and 'in 16 bits.' in answer and '--' not in answer
    assert '<meter' in Demo(str(small), grey_maximum=4095).answer([str(tmp_path / '12 bits.png')])


def test_reads_nothing_of_its_machine(page: str) -> None:
    """Neither by a path nor by an address that only this machine reaches."""
    for path in ('/etc/passwd', str(ROOT / 'README.md'), f'{page}/config'):
        assert answers(page, path) is None
    for path in ('/etc/passwd', ROOT / 'README.md'):
        assert httpx.get(f'{page}/gradio_api/file={path}').status_code == 403


def test_takes_no_more_than_it_can_hold(page: str) -> None:
    """Of a file without end, too: it stops to read."""

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        for _ in range(200):
            yield b'x' * 2**20

    headers = {'Content-Type': 'multipart/form-data; boundary=x'}
    with pytest.raises((httpx.TransportError, httpx.HTTPStatusError)):
        httpx.post(f'{page}/gradio_api/upload', content=endless(), headers=headers, timeout=60).raise_for_status()
    assert httpx.get(page).status_code == 200


def listening(port: int) -> list[str]:
    """Addresses at which a port is open, as Linux lists them: 0100007F is 127.0.0.1."""
    rows = [line.split()[1] for line in Path('/proc/net/tcp').read_text().splitlines() if ' 0A ' in line]
    return [row.partition(':')[0] for row in rows if row.endswith(f':{port:04X}')]


def test_bound_to_this_machine(page: str) -> None:
    assert listening(int(page.rpartition(':')[2])) == ['0100007F']


def test_two_at_once(page: str, another: str, converted: Path, checkpoint: Checkpoint) -> None:
    """Each answers by its own model, at a port of its own and at the addresses that it was told."""
    assert another != page and listening(int(another.rpartition(':')[2])) == ['00000000']
    photo = checkpoint.photos[0]
    for address, name, classes in ((page, converted.name, 5), (another, 'resnet', 3), (page, converted.name, 5)):
        answer = answers(address, upload(address, photo.name, photo.read_bytes()))
        assert answer is not None and f' s by {name}, engine eager. Explained in' in answer
        assert answer.count('<meter') == classes and answer.count('<img src="data:image/png') == 2


def test_port_that_is_taken(page: str, small: Path, tmp_path: Path) -> None:
    port = page.rpartition(':')[2]
    status, output = run_code(code_of(small, '--port', port), tmp_path, tmp_path / 'log')
    assert status == 1 and 'Traceback' not in output
    assert f'error: Port {port} is taken' in output and 'Choose another --port.' in output


@pytest.mark.parametrize(
    ('option', 'value', 'status', 'message'),
    [
        ('--host', '192.0.2.1', 1, 'error: --host 192.0.2.1 is not an address of this machine ('),  # for documentation
        ('--host', 'no host', 1, 'error: --host no host is not an address of this machine ('),
        ('--port', '65536', 2, 'Must be <= 65535'),
    ],
)
def test_addresses_that_cannot_be(option: str, value: str, status: int, message: str, small: Path) -> None:
    result = call(app, small, option, value)
    assert result.returncode == status and message in result.stdout + result.stderr
