"""The checks of `vedette doctor`, by section."""
