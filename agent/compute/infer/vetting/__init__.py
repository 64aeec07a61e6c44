"""Tests an unknown model in an unprivileged process before the daemon opens it."""
