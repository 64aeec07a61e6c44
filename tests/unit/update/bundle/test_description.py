"""`bundle.toml`: what is written is read again, and what is wrong is refused by the name of its key."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agent.errors import BundleError
from agent.update.bundle import BundleFile, Description, HealthGate, Migration, ShadowGate, Target, parse, render

SHA = "0" * 64
FILE = BundleFile(SHA, 1)
PATHS = (
    "config/vedette.toml",
    "golden/m.npz",
    "models/m.tflite",
    "models/m.toml",
    "wheels/vedette-1.0-py3-none-any.whl",
)
FULL = Description(
    schema=1,
    name="vedette",
    version="1.2.0",
    counter=7,
    kind="full",
    target=Target("aarch64", "3.11", boards=["pi4b", "pi5"]),
    migrations=[
        Migration("rename", "mqtt.server", to="mqtt.host"),
        Migration("set", "streams.front.threads", value=2),
        Migration("remove", "device.colour"),
    ],
    files=dict.fromkeys(PATHS, FILE),
)
MODELS = Description(1, "models", "3", 1, "models", files=dict.fromkeys(PATHS[1:4], FILE))


@pytest.mark.parametrize("description", [FULL, MODELS])
def test_what_is_rendered_is_parsed_again(description: Description) -> None:
    assert parse(render(description)) == description


def test_equal_descriptions_are_rendered_to_equal_bytes() -> None:
    reversed_files = msgspec.structs.replace(FULL, files=dict(reversed(FULL.files.items())))
    whole_seconds = msgspec.structs.replace(reversed_files, health=HealthGate(steady_s=60))
    assert render(whole_seconds) == render(FULL) == render(parse(render(FULL)))


WORDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", fullmatch=True)
KEYS = st.from_regex(r"[a-z0-9_-]{1,9}(\.[a-z0-9_*-]{1,9}){0,4}", fullmatch=True)
VALUES = st.text(max_size=60) | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats(allow_nan=False)
MIGRATIONS = st.one_of(
    st.builds(Migration, st.just("rename"), KEYS, to=KEYS),
    st.builds(Migration, st.just("remove"), KEYS),
    st.builds(Migration, st.just("set"), KEYS, value=VALUES),
)
GATES = st.builds(HealthGate, steady_s=st.floats(0, 300), within_s=st.floats(300, 86_400))


@given(WORDS, WORDS, st.integers(1, 2**53), st.lists(MIGRATIONS, max_size=4), GATES, st.data())
def test_any_description_comes_back_as_it_was(
    name: str, version: str, counter: int, migrations: list[Migration], health: HealthGate, data: st.DataObject
) -> None:
    files = data.draw(
        st.dictionaries(WORDS.map(lambda word: f"wheels/x{word.lower()}"), st.just(FILE), min_size=1)
    )
    target = Target("armv7l", "3.13", "2.36", data.draw(st.lists(WORDS, max_size=3)))
    made = Description(1, name, version, counter, "full", target, health, None, migrations, files)
    assume(all(len(str(one.value)) < 60 and str(one.value).count(".") < 60 for one in migrations))
    assert parse(render(made)) == made


def test_only_models_may_run_beside_those_in_use() -> None:
    models = {path: FILE for path in PATHS if path.split("/")[0] in ("models", "golden")}
    made = Description(1, "models", "2", 2, "models", None, shadow=ShadowGate(agreement=0.75), files=models)
    assert parse(render(made)) == made
    full = Description(
        1,
        "vedette",
        "2",
        2,
        "full",
        Target("aarch64", "3.13"),
        shadow=ShadowGate(),
        files=dict.fromkeys(PATHS, FILE),
    )
    with pytest.raises(BundleError, match="`shadow`: only models can run beside"):
        render(full)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_other_bytes_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"bundle\.toml"):
        parse(data)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (b"counter = 7", b"counter = 0", "`counter`"),
        (b"counter = 7", b'counter = "7"', "`counter`"),
        (b"counter = 7\n", b"", "`counter`"),
        (b'version = "1.2.0"', b'version = "1.2.0\\u001b[2J"', "`version`"),
        (b'version = "1.2.0"', b'version = "1.2.0\\n"', "`version`"),
        (b'to = "mqtt.host"', b'to = "mqtt.host\\n"', r"`migrations\[0\]`: `to`"),
        (b'arch = "aarch64"', b'arch = "mips"', r"`target\.arch`"),
        (b"steady_s = 60.0", b"steady_s = nan", r"`health\.steady_s`"),
        (b"steady_s = 60.0", b"steady_s = 600", r"`health\.within_s`"),
        (b"size = 1", b"size = -1", r'`files\."config/vedette\.toml"\.size`'),
        (b"size = 1", b"size = 2147483648", "bytes together"),
        (SHA.encode(), b"0" * 63, r'`files\."config/vedette\.toml"\.sha256`'),
        (b"schema = 1", b"schema = 2", "another version of Vedette"),
        (b"counter = 7", b"counter = 7\ncolour = 1", "colour"),
        (b'op = "remove"', b'op = "set"', r"`migrations\[2\]`: `value`"),
        (b'to = "mqtt.host"', b'to = "mqtt host"', r"`migrations\[0\]`: `to`"),
        (b"golden/m.npz", b"golden/n.npz", r"model 'm' has no \.npz"),
        (b"config/vedette.toml", b"config/../../passwd", "is not a path in a bundle"),
        (b"config/vedette.toml", b"/etc/vedette.toml", "is not a path in a bundle"),
        (b"config/vedette.toml", b"wheels/Vedette-1.0-py3-none-any.whl", "with different case only"),
        (b'kind = "full"', b'kind = "models"', "neither wheels"),
    ],
)
def test_what_is_wrong_is_named(old: bytes, new: bytes, key: str) -> None:
    rendered = render(FULL)
    assert old in rendered
    with pytest.raises(BundleError, match=key):
        parse(rendered.replace(old, new, 1))


def test_a_full_bundle_has_a_target_and_wheels() -> None:
    for lacking in ({"target": None}, {"files": dict.fromkeys(PATHS[:4], FILE)}):
        with pytest.raises(BundleError, match="a full bundle needs it"):
            render(msgspec.structs.replace(FULL, **lacking))


def test_a_description_that_is_huge_is_refused() -> None:
    with pytest.raises(BundleError, match="of at most"):
        parse(render(FULL) + b"#" * (1 << 20))


@pytest.mark.parametrize(
    "deep", [b"x = " + b"[" * 500_000, b"a." * 400_000 + b"a = 1", b"[" + b"a." * 400_000 + b"a]"]
)
def test_a_description_that_is_deep_is_refused_at_once(deep: bytes) -> None:
    with pytest.raises(BundleError):
        parse(deep)


def test_brackets_within_brackets_over_many_lines_are_refused() -> None:
    with pytest.raises(BundleError, match="too deeply"):
        parse(b"x = " + b"[\n" * 100_000)
