"""Every error that Vedette raises on purpose.

    VedetteError
    ├── ConfigError          a configuration file or value cannot be used
    ├── SourceError          a camera, stream, file or folder cannot be opened or read
    ├── ModelError           a model file, its manifest, or the two together cannot be used
    │   └── BackendError     a runtime or device cannot run a model that is itself sound
    ├── StorageError         a state folder, spool or file cannot be used
    │   └── InUseError       another process owns it
    ├── BrokerError          a broker cannot be reached or refuses us
    ├── CommandError         what an operator asked for is refused
    ├── BundleError          a bundle cannot be built, or is not what it says it is
    │   ├── TrustError       nobody whom this board trusts has signed a bundle
    │   └── GoldenError      a model of a bundle does not answer as it did where the bundle was made
    ├── UpdateError          an update cannot be made, gone on with or taken back
    ├── FleetError           boards cannot be updated together: inventory, ledger, host keys
    └── StreamError          every stream is over, and one has failed

A message says what, which one (path, topic, host), what was expected, what was found and what to do, in one
line. Foreign errors are mapped to these once, at the room that meets them.
"""

from __future__ import annotations

from agent.text import plain, without_logins


def reason_of(error: Exception) -> str:
    """Return the message of the system or a library without number: `Permission denied`, not `[Errno 13] …`."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


NO_JSON = (ValueError, RecursionError)
"""Errors that msgspec raises for bytes that are not the JSON expected. Its own errors and UnicodeDecodeError are
ValueErrors; RecursionError is for brackets nested too deeply."""


class VedetteError(Exception):
    """The root of the tree: the command line prints its text and exits with 1.

    The text may quote a camera, a broker or a file: it is made printable here, and user names and passwords in
    addresses are masked. Line breaks stay.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(without_logins(plain(message, keep="\n")))


class ConfigError(VedetteError):
    """A configuration cannot be used.

    Attributes:
        where: `file:line` of the offending key, as far as known.
        keys: path of the offending key, such as `("mqtt", "ca_file")`, where the file is not at hand.
    """

    def __init__(self, message: str, where: str = "", *, keys: tuple[str | int, ...] = ()) -> None:
        self.where, self.keys = where, keys
        super().__init__(f"{where}: {message}" if where else message)


class SourceError(VedetteError):
    """A source cannot be opened, or broke while it was read."""


class ModelError(VedetteError):
    """A model file or its manifest cannot be used.

    Attributes:
        faults: everything that is wrong, a line each. The text of the error is the first of them, and how many
            more there are.
    """

    def __init__(self, fault: str, *more: str) -> None:
        self.faults = tuple(map(without_logins, (fault, *more)))
        told = f" (and {len(more)} more: `vedette models inspect` lists them)" if more else ""
        super().__init__(f"{fault}{told}")


class BackendError(ModelError):
    """This machine cannot run a model that is itself sound."""


class UndecodableError(ModelError):
    """No decoder fits the outputs of a model, so no manifest helps."""


class NormalisationError(ModelError):
    """A manifest must say `[input] mean` and `std`, which nothing tells."""


class StorageError(VedetteError):
    """The state folder or something in it cannot be used."""


class InUseError(StorageError):
    """Another process owns a folder."""


class BrokerError(VedetteError):
    """A broker cannot be reached, or refuses us."""


class CommandError(VedetteError):
    """An operator's request is refused. The text is for the operator."""


class BundleError(VedetteError):
    """A bundle cannot be built, or is not what it says it is."""


class TrustError(BundleError):
    """Nobody whom this board trusts has signed a bundle."""


class GoldenError(BundleError):
    """A model does not answer as where its bundle was made. The text names model, output and difference."""


class UpdateError(VedetteError):
    """An update cannot be made, gone on with or taken back. The text says why, and what to do."""


class FleetError(VedetteError):
    """Boards cannot be updated together. The text says why, and what to do."""


class StreamError(VedetteError):
    """Every stream is over, and one has failed. The log has told why: the command line only exits with 1."""
