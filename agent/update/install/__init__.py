"""An update on the board: staged, tried, kept or taken back."""
