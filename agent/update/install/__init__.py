"""Updates on the board: install a bundle, switch to it on trial, and commit it or roll back."""
