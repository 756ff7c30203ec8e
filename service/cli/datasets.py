"""Commands about data sets: show what is registered, pack one, and see that a packed one is whole."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from service.cli.connection import connect
from service.cli.outcome import outcome
from service.cli.output import AsJson, error_console, print_json, print_members, print_table

if TYPE_CHECKING:
    from trainer.data.packing import Progress

__all__ = ["register"]

_LINE_INTERVAL_S: Final = 10.0  # where the output is no terminal
_SHOW: Final = "show"

Name = Annotated[str | None, typer.Argument(help="Show this one in full.")]
Packed = Annotated[
    str, typer.Argument(help="Folder or s3://bucket/prefix/NAME of the packed data set; its name is the id.")
]


class _ShowsByDefault(TyperGroup):
    """`datasets` and `datasets NAME` are short for `datasets show` and `datasets show NAME`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `show` before words that begin with no command."""
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = [_SHOW, *args]
        return list(super().parse_args(ctx, args))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(cls=_ShowsByDefault)
    group.command(_SHOW)(show)
    group.command()(pack)
    group.command()(verify)
    group.callback()(_datasets)
    app.add_typer(group, name="datasets")


def _datasets() -> None:
    """Show the registered data sets, or pack one; `simclr datasets NAME --json` is short for `show`."""


def show(name: Name = None, *, as_json: AsJson = False) -> None:
    """Show the registered data sets."""
    with outcome(as_json=as_json), connect() as client:
        if name is not None:
            (print_json if as_json else print_members)(client.dataset(name))
        elif as_json:
            print_json(list(client.datasets()))
        else:
            columns = ("name", "num_train", "num_test", "num_classes", "description")
            print_table(client.datasets(), columns)


def pack(
    source: Annotated[
        Path,
        typer.Argument(help="Folder with train/ and perhaps test/: images, Parquet or tar files; or an .npz file."),
    ],
    target: Packed,
    *,
    image_size: Annotated[int, typer.Option(min=1, max=4096, help="Pixels a side, as data.image_size of the specs.")],
    num_workers: Annotated[
        int | None, typer.Option(min=1, help="Tasks of Ray Data at a time; 1: this process alone. Default: the cores.")
    ] = None,
    images_per_shard: Annotated[int | None, typer.Option(min=1, help="Default: 64 MB, at most 256 shards.")] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read, and name them.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a packing was ended, or mend what was damaged since.")
    ] = False,
    image_column: Annotated[str, typer.Option(help="Parquet column of the images.")] = "image",
    label_column: Annotated[str, typer.Option(help="Parquet column of the labels.")] = "label",
    as_json: AsJson = False,
) -> None:
    """Pack a data set of any size, into a folder or a bucket: decoded once, in parallel, then mapped by every run."""
    with outcome(as_json=as_json):
        from trainer.data.files import local_path, named_place
        from trainer.data.packing import pack as pack_data
        from trainer.data.packing import source_at

        place = named_place(target)
        with _progress() as on_shard:
            packing = pack_data(
                source_at(local_path(source), image_column=image_column, label_column=label_column),
                place,
                image_size=image_size,
                num_workers=num_workers or os.cpu_count() or 1,
                images_per_shard=images_per_shard,
                leaves_out_unreadable=skip_unreadable,
                resumes=resume,
                on_shard=on_shard,
            )
        document = _document(place, packing.manifest)
        document |= {"shards_written": packing.num_written, "shards_kept": packing.num_kept}
        (print_json if as_json else print_members)(document)


def verify(target: Packed, *, as_json: AsJson = False) -> None:
    """Read all of a packed data set and compare it with the digests it was written with."""
    with outcome(as_json=as_json):
        from trainer.data.files import named_place
        from trainer.data.packed import verify as verify_packed

        place = named_place(target)
        (print_json if as_json else print_members)(_document(place, verify_packed(place)))


def _document(place: str, manifest: Any) -> dict[str, Any]:
    return {
        "name": place.rpartition("/")[2],
        "folder": place,
        "image_size": manifest.image_size,
        "num_train": manifest.num_train,
        "num_test": manifest.num_test,
        "num_classes": None if manifest.class_names is None else len(manifest.class_names),
        "digest": manifest.digest,
        "warnings": list(manifest.warnings),
    }


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Yield what shows how far a packing is: a bar on a terminal, else a line from time to time."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = error_console()
    if console.is_terminal:
        columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=console, transient=True) as bar:
            task = bar.add_task("images", total=None)
            yield lambda at: bar.update(task, total=at.num_images_in_all, completed=at.num_images)
        return
    said_at_s = time.monotonic()

    def say(at: Progress) -> None:
        nonlocal said_at_s
        if time.monotonic() - said_at_s >= _LINE_INTERVAL_S or at.num_shards == at.num_shards_in_all:
            said_at_s = time.monotonic()
            shards = f"{at.num_shards} of {at.num_shards_in_all} shards"
            console.print(f"{shards}, {at.num_images:,} of {at.num_images_in_all:,} images", soft_wrap=True)

    yield say
