"""Table of fuzzed parsers of foreign data, with valid inputs. A new parser is a new row here."""

from __future__ import annotations

import binaries
import msgspec
import sent
import written
from target import JSON, TOML, Target

from agent.child import InvalidMessageError

_DAMAGED = (msgspec.MsgspecError, ValueError, RecursionError)
"""For one of these `agent.comms.mqtt.outbox` drops a row of the spool."""

TARGETS: dict[str, Target] = {
    "config": Target("the configuration, TOML", written.config, written.config_seeds, tokens=TOML),
    "profile": Target("a board's profile, TOML", written.profile, written.profile_seeds, tokens=TOML),
    "manifest": Target("a model's manifest, TOML", written.manifest, written.manifest_seeds, tokens=TOML),
    "wakeword": Target(
        "a manifest of microWakeWord, JSON", written.wakeword, written.wakeword_seeds, tokens=JSON
    ),
    "uri": Target("the URI of a source", written.uri, written.uri_seeds),
    "watch": Target(
        "messages of strangers, as `watch` shows them", sent.watched, sent.watched_seeds, tokens=JSON
    ),
    "commands": Target("commands of strangers", sent.commanded, sent.commanded_seeds, tokens=JSON),
    "finish": Target(
        "an event out of the spool", sent.finished, lambda: [sent.EVENT], _DAMAGED, JSON, guided=False
    ),
    "model": Target(
        "a TFLite model and its metadata", binaries.modelfile, binaries.modelfile_seeds, counts=binaries.RUN
    ),
    "answer": Target(
        "an answer of a worker process, JSON",
        binaries.answer,
        binaries.answer_seeds,
        (InvalidMessageError,),
        JSON,
    ),
    "sound": Target(
        "a sound file", binaries.sound, binaries.sound_seeds, tokens=(b"RIFF", b"data", b"fmt ", b"fLaC", b"OggS")
    ),
    "bundle": Target("a bundle and its description", binaries.bundle, binaries.bundle_seeds, tokens=TOML),
}
