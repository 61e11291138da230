"""`python -m xception_hub COMMAND`."""

from .cli import main

if __name__ == '__main__':
    main()
