"""The configuration in effect: with values from the models' manifests and from this machine."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from agent.comms.mqtt.endpoint import shown_host
from agent.compute.infer.vetting.unprivileged import without_root
from agent.compute.manifest import Manifest
from agent.config import Config
from agent.config.source_uri import mask
from agent.config.stream import StreamConfig
from agent.config.toml import Keys
from agent.errors import ModelError, StorageError
from agent.models.files import preloaded
from agent.models.library import open_model
from agent.storage.clips.retention import clips_max_bytes
from agent.storage.files import clips_path, folder_of
from agent.text import without_login

_ORIGIN = "from the model's manifest"
_SHARE = "a tenth of the file system of the clips, 1 GiB at most"


class Effective(Struct, frozen=True):
    """A configuration and remarks on it.

    Attributes:
        config: what is used.
        remarks: what is to be said about keys: where their value comes from, or why it is not known.
    """

    config: Config
    remarks: dict[Keys, str]


def resolved_config(config: Config) -> Effective:
    """Fill in variants and thresholds of models that can be opened, and values that depend on the machine."""
    config, remarks = _placed(config)
    streams = dict(config.streams)
    for name, stream in config.streams.items():
        try:
            manifest = _manifest(stream)
        except ModelError as error:
            remarks["streams", name, "model"] = (
                f"cannot be opened, so its variant and thresholds are unknown: {error}"
            )
            continue
        streams[name] = _filled(stream, manifest)
        remarks |= {("streams", name, *keys): _ORIGIN for keys in _left_open(stream)}
    return Effective(replace(config, streams=streams), remarks)


def _manifest(stream: StreamConfig) -> Manifest:
    with preloaded([stream.model]):
        return without_root(lambda: open_model(stream.model, stream.variant).manifest, Manifest)


def masked(config: Config) -> Config:
    """Return the same with the URIs of sources as the log shows them: of those on the network the host alone.

    A password in an address at another key, where it is out of place, is masked, too.
    """
    found: Config = _without_logins(config)
    streams = {
        name: replace(stream, source=mask(config.streams[name].source)) for name, stream in found.streams.items()
    }
    fallback = tuple(replace(one, host=shown_host(one.host)) for one in config.mqtt.fallback)
    mqtt = replace(found.mqtt, host=shown_host(config.mqtt.host), fallback=fallback)
    return replace(found, streams=streams, mqtt=mqtt)


def _without_logins(value: Any) -> Any:
    if isinstance(value, Struct):
        return replace(value, **{name: _without_logins(getattr(value, name)) for name in value.__struct_fields__})
    if isinstance(value, dict):
        return {key: _without_logins(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_without_logins, value))
    return without_login(value) if isinstance(value, str) else value


def _placed(config: Config) -> tuple[Config, dict[Keys, str]]:
    if config.storage.clips_max_bytes is not None:
        return config, {}
    try:
        folder = clips_path(config.storage, folder_of(config.storage))
    except StorageError:
        return config, {}
    storage = replace(config.storage, clips_max_bytes=clips_max_bytes(folder, config.storage))
    return replace(config, storage=storage), {("storage", "clips_max_bytes"): _SHARE}


def hidden(config: Config, shown: Config) -> dict[Keys, str]:
    """Return a remark for each source whose URI is masked."""
    return {
        ("streams", name, "source"): "the host alone; --secrets shows the whole"
        for name, stream in config.streams.items()
        if stream.source != shown.streams[name].source
    }


def _filled(stream: StreamConfig, manifest: Manifest) -> StreamConfig:
    decode, output = stream.decode, manifest.output
    score, iou = decode.score_threshold, decode.iou_threshold
    decode = replace(
        decode,
        score_threshold=output.score_threshold if score is None else score,
        iou_threshold=output.iou_threshold if iou is None else iou,
    )
    hits = stream.track.min_hits or manifest.min_hits
    variant = stream.variant if manifest.exits(stream.variant) else manifest.variants[0].name
    return replace(stream, variant=variant, decode=decode, track=replace(stream.track, min_hits=hits))


def _left_open(stream: StreamConfig) -> list[Keys]:
    """Return the stream's keys that take their value from the manifest."""
    left = [
        ("decode", key) for key in ("score_threshold", "iou_threshold") if getattr(stream.decode, key) is None
    ]
    return [*left, *([] if stream.variant else [("variant",)])]
