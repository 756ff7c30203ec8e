"""The command line `simclr`."""

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    from service.cli.app import app

    app()
