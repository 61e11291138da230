"""xception-hub demo finetuned

Starts a web page on this machine that classifies photos, with probabilities and heat maps.
"""

import base64
import html
import io
import json
import os
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number
from PIL import Image

from ..errors import ImageError, ModelError, SettingsError, exits_with_message, printable
from ..models.build import open_model
from .attribution import explain, in_unit_range
from .overlay import overlay, seen
from .predictor import EAGER, Predictor

HOST = os.environ.get('GRADIO_SERVER_NAME', '127.0.0.1')
TOP = 5  # classes that are shown
MOST = 8  # photos at once
MAX_MEGABYTES = 32  # of a file
MAX_PIXELS = 2**25  # 34 million of a photo: 130 MB with its transparency
KEPT = 600  # seconds, of a photo
WAITING = 20  # visitors; the next one is asked to come again

INTRODUCTION = """
# What does it see?

Photos, classified by `{name}`. The machine that answers keeps them for {minutes} minutes.
"""
PHOTO = """
<article class="photo">
  <h3>{name}</h3>
  <div class="pictures">{pictures}</div>
  <ol class="classes">{classes}</ol>
  <p>{done}</p>
</article>"""
REFUSED = '<article class="photo" role="alert"><h3>{name}</h3><p>Not answered: {reason}.</p></article>'
CLASS = (
    '<li><span>{label}</span><meter max="1" value="{value:.4f}">{value:.1%}</meter>'
    '<data value="{value}">{value:.1%}</data></li>'
)
STYLE = """
.photo { border-top: 1px solid var(--border-color-primary); padding: 1rem 0; }
.photo .pictures { display: flex; flex-wrap: wrap; gap: .5rem; }
.photo img { max-width: min(100%, 20rem); height: auto; border-radius: .3rem; }
.photo ol { list-style: none; padding: 0; margin: .5rem 0; max-width: 42rem; }
.photo li { display: grid; grid-template-columns: minmax(7rem, 1fr) 2fr 4rem; gap: .5rem; align-items: center; }
.photo li span { overflow-wrap: anywhere; }
.photo meter { width: 100%; height: 1.2rem; }
.photo data { text-align: right; font-variant-numeric: tabular-nums; }
"""

app = App(help=__doc__, version_flags=[])


class Demo:
    """The web page of a model.

    Args:
        name: Model, as for `xception-hub predict --model`.
        engine: One of `xception_hub.optimize`'s engines, 'auto' for the fastest, or 'eager'.
        grey_maximum: See `Predictor`.

    Raises:
        ModelError: There is no such model, or its outputs are no classes.
    """

    def __init__(self, name: str, engine: str = EAGER, grey_maximum: int | None = None) -> None:
        self.name = Path(name).name if Path(name).is_dir() else name  # no path of this machine
        self.engine = engine
        self.predictor = Predictor(name, top=TOP, engine=engine, grey_maximum=grey_maximum)
        loaded = self.predictor.loaded
        self.model = loaded.function if engine == EAGER else open_model(name)[0]  # engines compute no gradients
        self.numbers = {label: number for number, label in enumerate(loaded.class_names)}

    def answer(self, files: Sequence[str] | None) -> str:
        """Returns the page's answer to photos in HTML. For a bad file, it contains the reason."""
        if not files:
            return '<p>Choose one photo or several.</p>'
        more = f'<p>{len(files) - MOST} photos are left out: {MOST} at once are answered.</p>' if files[MOST:] else ''
        return '\n'.join(self._article(Path(file)) for file in files[:MOST]) + more

    def _article(self, file: Path) -> str:
        name = _escaped(file.name)
        try:
            photo = self.predictor.loaded.transforms.open(file, MAX_PIXELS)
        except ImageError as e:
            reason = re.sub(r': [^:]*--[^:]*$', '', str(e))  # without options of a command, which visitors do not have
            return REFUSED.format(name=name, reason=_escaped(reason))
        start = time.perf_counter()
        (row,) = self.predictor.predict([photo])
        if row['error']:
            return REFUSED.format(name=name, reason=_escaped(row['error']))
        top = json.loads(row['top'])
        done = f'Answered in {time.perf_counter() - start:.2f} s by {self.name}, engine {self.engine}. '
        pictures, more = self._pictures(photo, *top[0])
        return PHOTO.format(
            name=name,
            pictures=''.join(f'<img src="{_data(picture)}" alt="{_escaped(text)}">' for text, picture in pictures),
            classes=''.join(CLASS.format(label=_escaped(label), value=value) for label, value in top),
            done=_escaped(done + more),
        )

    def _pictures(self, photo: Image.Image, label: str, _: float) -> tuple[list[tuple[str, Image.Image]], str]:
        """Returns the network's input and the heat map of a class, each with its description, and a note."""
        transforms, start = self.predictor.loaded.transforms, time.perf_counter()
        image = transforms.evaluation()(photo)
        network = seen(image, transforms.config['mean'], transforms.config['std'])
        pictures = [('The photo as the network sees it', network)]
        try:
            heat = in_unit_range(explain(self.model, image[None], [self.numbers[label]]))[0]
        except ModelError:
            return pictures, 'Not explained: this model has no feature maps.'
        pictures.append((f'Heat map for {label}: bright areas add most to its score', overlay(network, heat)))
        return pictures, f'Explained in {time.perf_counter() - start:.2f} s.'

    def page(self) -> Any:
        """The page of gradio, not yet served."""
        gr = _gradio()
        with gr.Blocks(title='xception_hub', analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
            gr.Markdown(INTRODUCTION.format(name=self.name, minutes=KEPT // 60))
            files = gr.File(label='Photos', file_count='multiple', type='filepath', height=180)
            answer = gr.HTML(label='Answer')
            files.change(self.answer, files, answer, concurrency_limit=1, api_name='answer')
        return page.queue(max_size=WAITING)


def _gradio() -> Any:
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')  # read when gradio is imported
    import gradio

    return gradio


def _escaped(text: object) -> str:
    return html.escape(printable(text))


def _data(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _check_host(host: str) -> None:
    """Raises a SettingsError at once; gradio would try each port for five seconds, and blame the ports."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip('[]'), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except (OSError, UnicodeError) as e:  # UnicodeError: of a name that is no name
        raise SettingsError(
            f'--host {host} is not an address of this machine ({e}). Choose 127.0.0.1 for this machine alone, or '
            f'0.0.0.0 for all machines that can connect.'
        ) from e


def launch(
    model: str,
    host: str | None = None,
    port: int | None = None,
    engine: str = EAGER,
    grey_maximum: int | None = None,
    **options: Any,
) -> Any:
    """Serves the page until the process ends.

    Args:
        model: Model, as for `xception-hub predict --model`.
        host: Address of the page; None means GRADIO_SERVER_NAME if set, else this machine alone.
        port: Port of the page; None means the first free one from 7860 on.
        engine: See `Demo`.
        grey_maximum: See `Predictor`.
        **options: Further arguments of gradio's `launch`.

    Raises:
        ModelError: There is no such model, or its outputs are no classes.
        SettingsError: The host is no address of this machine, or the port is taken.
    """
    _check_host(host or HOST)
    gr = _gradio()
    page = Demo(model, engine, grey_maximum).page()
    try:
        return page.launch(
            server_name=host,
            server_port=port,
            max_file_size=MAX_MEGABYTES * 2**20,
            footer_links=[],
            css=STYLE,
            theme=gr.themes.Base(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace']),
            **options,
        )
    except OSError as e:
        place = f'Port {port}' if port else 'Each port from 7860 to 7959'
        raise SettingsError(f'{place} is taken, or cannot be opened ({e}). Choose another --port.') from e


@app.default
@exits_with_message()
def main(
    model: str,
    *,
    host: str | None = None,
    port: Annotated[int | None, Parameter(validator=Number(gte=1, lte=65535))] = None,
    engine: str = EAGER,
    grey_maximum: int | None = None,
) -> None:
    """Start a web page that classifies photos with MODEL, and shows heat maps.

    Args:
        model: Directory that finetune or convert wrote, or a name for timm.create_model.
        host: Address of the page. 0.0.0.0 lets other machines connect. By default only this one can.
        port: Port of the page. By default the first free port from 7860 on.
        engine: Engine that runs the network: eager (plain PyTorch), auto (the fastest), or a name such as openvino.
        grey_maximum: Value of white in grey images of more than 8 bits: 4095 for 12 bits, 65535 for 16.
    """
    launch(model, host, port, engine, grey_maximum)
