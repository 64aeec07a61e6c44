"""For every test."""

from hypothesis import settings

# How long an example takes says nothing on a machine that does other things, too; pytest has the time limits.
settings.register_profile("vedette", deadline=None)
settings.load_profile("vedette")
