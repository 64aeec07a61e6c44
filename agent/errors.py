"""Every error that Vedette raises on purpose.

    VedetteError
    ├── ConfigError          a configuration file or value cannot be used
    ├── SourceError          a camera, stream, file or folder cannot be opened or read
    ├── ModelError           a model file, its manifest, or the two together cannot be used
    │   ├── BackendError     a runtime or device cannot run a model that is itself sound
    │   ├── CheckpointError  a checkpoint is none, or belongs to another run
    │   ├── DivergedError    the loss of a training is not finite any more
    │   └── ReportedError    a step has ended without a result that is of use, and its report says why
    ├── StorageError         a state folder, spool or file cannot be used
    │   └── InUseError       another process owns it
    ├── BrokerError          a broker cannot be reached or refuses the connection
    ├── CommandError         a request of an operator is refused
    ├── BundleError          a bundle cannot be built, or is not valid
    │   ├── TrustError       no signer that this board trusts has signed a bundle
    │   └── GoldenError      a model of a bundle gives other outputs than where the bundle was made
    ├── UpdateError          an update cannot be installed, continued or rolled back
    ├── FleetError           boards cannot be updated together: inventory, ledger, host keys
    └── StreamError          every stream has ended, and one has failed

A message says what happened, to which thing (path, topic, host), what was expected, what was found and what to
do, in one line. Errors of libraries are mapped to these once, where they occur.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from agent.text import plain, without_logins


@contextmanager
def about(*keys: str | int) -> Iterator[None]:
    """Have each error of the block tell that it is about a key of the configuration, unless it names one."""
    try:
        yield
    except VedetteError as error:
        error.keys = error.keys or keys
        raise


def reason_of(error: Exception) -> str:
    """Return an error's message without its number: `Permission denied`, not `[Errno 13] …`."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


NO_JSON = (ValueError, RecursionError)
"""Errors that msgspec raises for JSON that is not as expected: its own and UnicodeDecodeError are ValueErrors;
RecursionError is for brackets nested too deeply."""


class VedetteError(Exception):
    """Base class: the command line prints the text and exits with `exit_code`.

    The text is made printable, and user names and passwords in addresses are masked. Line breaks stay.

    Attributes:
        keys: path of the configuration's key that it is about, such as `("mqtt", "ca_file")`; below its table for
            an error of a stream. Empty: unknown.
    """

    exit_code = 1
    keys: tuple[str | int, ...] = ()

    def __init__(self, message: str = "") -> None:
        super().__init__(without_logins(plain(message, keep="\n")))


class ConfigError(VedetteError):
    """A configuration cannot be used.

    Attributes:
        where: `file:line` of the wrong key; empty: unknown.
    """

    def __init__(self, message: str, where: str = "", *, keys: tuple[str | int, ...] = ()) -> None:
        self.where, self.keys = where, keys
        super().__init__(f"{where}: {message}" if where else message)


class BlurModelError(ConfigError):
    """A model that finds what is blurred cannot be opened now: the stream shows nothing, and is started again."""


class NotInstalledError(ConfigError):
    """A package is missing that something configured needs: a daemon runs without that."""


class SourceError(VedetteError):
    """A source cannot be opened or read."""


class BlurError(SourceError):
    """What a stream is to blur could not be found in a picture: it shows nothing, and is started again."""


class SoundAloneError(SourceError):
    """A stream of the network has sound and no pictures: of use to a stream that only hears."""


class ModelError(VedetteError):
    """A model file or its manifest cannot be used.

    Attributes:
        faults: one line for each fault. The text of the error is the first one and the number of the others.
    """

    def __init__(self, fault: str, *more: str) -> None:
        self.faults = tuple(map(without_logins, (fault, *more)))
        told = f" (and {len(more)} more: `vedette models inspect` lists them)" if more else ""
        super().__init__(f"{fault}{told}")


class BackendError(ModelError):
    """This machine cannot run a model that is itself sound."""


class CheckpointError(ModelError):
    """A file is no checkpoint, or that of another run: it stays, and the run must not go on without it."""


class DivergedError(ModelError):
    """The loss of a training is not finite any more: the run cannot go on with these settings."""


class ReportedError(ModelError):
    """A step has ended without a result that is of use. With `--json` its report, which says why, was printed."""


class UndecodableError(ModelError):
    """No decoder fits the outputs of a model, whatever its manifest says."""


class NormalisationError(ModelError):
    """A manifest must state `[input] mean` and `std`, which are unknown."""


class StorageError(VedetteError):
    """The state folder or something in it cannot be used."""


class InUseError(StorageError):
    """Another process owns a folder."""


class BrokerError(VedetteError):
    """A broker cannot be reached, or refuses the connection."""


class CommandError(VedetteError):
    """An operator's request is refused."""


class BundleError(VedetteError):
    """A bundle cannot be built, or is not valid."""


class TrustError(BundleError):
    """No signer that this board trusts has signed a bundle."""


class GoldenError(BundleError):
    """A model gives other outputs than where its bundle was made. The text names model, output and difference."""


class UpdateError(VedetteError):
    """An update cannot be installed, continued or rolled back."""


class FleetError(VedetteError):
    """Boards cannot be updated together."""


class StreamError(VedetteError):
    """Every stream has ended, and one has failed. The log has the reason: the command line only exits with 1."""
