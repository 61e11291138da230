"""The site of the pages below docs/: built with warnings as errors, so that each link and each docstring holds."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import ROOT

import xception_hub

pytestmark = [pytest.mark.needs('sphinx', 'myst_parser', 'furo'), pytest.mark.slow]
PAGES = {path.stem for path in (ROOT / 'docs').glob('*.md')}


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', ROOT / 'docs', folder / 'html']
    result = subprocess.run([*command, '-d', folder / 'doctrees'], cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    return folder / 'html'


class Links(HTMLParser):
    """The addresses that a page names."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page.read_text(encoding='utf-8'))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {value for name, value in attrs if name in ('href', 'src') and value}


def test_every_page_is_reached(site: Path) -> None:
    assert {path.stem for path in site.glob('*.html')} >= PAGES
    reached = {link.partition('#')[0].removesuffix('.html') for link in Links(site / 'index.html').found}
    assert PAGES - {'index'} <= reached


def test_works_without_a_server_or_a_network(site: Path) -> None:
    """What a page is made of lies beside it."""
    for page in site.glob('*.html'):
        for link in Links(page).found:
            if not link.startswith(('http:', 'https:', '#', 'data:', 'mailto:')):
                assert (page.parent / link.partition('#')[0].partition('?')[0]).exists(), (page.name, link)


def test_search_finds_pages_and_functions(site: Path) -> None:
    index = (site / 'searchindex.js').read_text(encoding='utf-8')
    assert '"old_checkpoints"' in index and 'facef' in index  # stems of words: FaceForensics++
    assert all(f'"{name}"' in index for name in xception_hub.__all__)
