"""`python -m xception_hub COMMAND`."""

from .cli import app

if __name__ == '__main__':
    app()
