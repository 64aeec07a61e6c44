"""`vedette run`: the daemon in the foreground, as systemd starts it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from agent.board.process import install_handlers
from agent.cli.options import config_option


@click.command()
@config_option("Configuration file.")
@click.option("--exit-when-done", is_flag=True, help="Exit when every source has ended (files).")
@click.option("-v", "--verbose", is_flag=True, help="Also log messages of libraries.")
def run(path: Path, exit_when_done: bool, verbose: bool) -> None:
    """Run until SIGTERM. SIGHUP reads the configuration again and applies what changed."""
    # Before numpy is imported: its matrices are small here, and waiting threads would take memory and CPU time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from agent.board.process import limit_malloc_arenas, return_large_blocks
    from agent.config.load import Rereadable

    limit_malloc_arenas()
    return_large_blocks()
    set_up_logging(verbose)
    file = Rereadable(path)
    config = file.read()
    from agent.daemon.daemon import Daemon

    daemon = Daemon(
        config,
        reload=file.read,
        where=file.where,
        board=file.describe_board(),
        file=path,
        exit_when_done=exit_when_done,
    )
    install_handlers(daemon.request_stop, daemon.request_reload)
    daemon.run()


def set_up_logging(verbose: bool) -> None:
    """Log to stderr, with the time unless the journal adds it."""
    from agent.text import stderr_formatter

    handler = logging.StreamHandler()
    handler.setFormatter(stderr_formatter())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
