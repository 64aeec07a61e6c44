"""For every test."""

from hypothesis import settings

# How long an example takes says nothing on a machine that does other things, too; pytest has the time limits.
settings.register_profile("vedette", deadline=None)
# For the interpreters and runtimes that come after the first: what they might do otherwise shows in few examples.
settings.register_profile("few", deadline=None, max_examples=20)
settings.load_profile("vedette")
