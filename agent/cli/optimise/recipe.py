"""`vedette optimise recipe`: print a recipe with a comment on each key."""

from __future__ import annotations

import click


@click.command()
@click.argument("steps", nargs=-1)
def recipe(steps: tuple[str, ...]) -> None:
    """Print a recipe with a comment on each key: of STEPS, or of all.

    A recipe is a TOML file that says what the steps do. What is printed are the defaults.
    """
    from agent.optimise.recipe import example

    click.echo(example(steps), nl=False)
