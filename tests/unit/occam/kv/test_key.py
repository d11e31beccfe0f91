from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from occam.kv.key import KVKey, MediumKey

CLIP = MediumKey(kind="video", digest="ab" * 32, frame_indices=(0, 3, 7), decode_backend="decord 0.6.0")
PHOTO = MediumKey(kind="image", digest="cd" * 32, frame_indices=(0,), decode_backend="pillow 13.0.0")
KEY = KVKey(
    media=(CLIP, PHOTO),
    facts={"model": "m", "cut": 3, "lambda1": 0.1, "keep_cls": False},
    tenant_salt="t",
)
OTHERS = {
    "media": (PHOTO, CLIP),
    "tenant_salt": "u",
    "wire": "int8",
    "codec_version": 1,
}
OTHER_CLIPS = {
    "kind": "image",
    "digest": "ac" * 32,
    "frame_indices": (0, 3, 8),
    "decode_backend": "decord 0.6.1",
}
facts = st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=3), st.integers(), st.floats(), st.booleans()))


@pytest.mark.parametrize("field", OTHERS)
def test_every_field_matters(field: str) -> None:
    assert replace(KEY, **{field: OTHERS[field]}).digest != KEY.digest


@pytest.mark.parametrize("field", OTHER_CLIPS)
def test_every_field_of_every_medium_matters(field: str) -> None:
    other = replace(CLIP, **{field: OTHER_CLIPS[field]})
    assert len({replace(KEY, media=media).digest for media in ((CLIP, CLIP), (other, CLIP), (CLIP, other))}) == 3


def test_the_number_of_media_matters() -> None:
    assert len({replace(KEY, media=(PHOTO,) * count).digest for count in range(4)}) == 4


@pytest.mark.parametrize("fact", KEY.facts)
def test_every_fact_matters(fact: str) -> None:
    without = {name: value for name, value in KEY.facts.items() if name != fact}
    changed = {**KEY.facts, fact: f"{KEY.facts[fact]}x"}
    assert len({key.digest for key in (KEY, replace(KEY, facts=without), replace(KEY, facts=changed))}) == 3


def test_values_that_python_calls_equal_are_not() -> None:
    values = [1, 1.0, True, "1", "1.0", 0.0, -0.0, 0, False, "", 0.1, 0.1 + 2**-56]
    assert len({replace(KEY, facts={"x": value}).digest for value in values}) == len(values)


def test_the_order_of_facts_does_not_matter_and_that_of_frames_does() -> None:
    assert replace(KEY, facts=dict(reversed(KEY.facts.items()))).digest == KEY.digest
    assert replace(KEY, media=(replace(CLIP, frame_indices=(3, 0, 7)), PHOTO)).digest != KEY.digest


def test_neighbouring_fields_do_not_run_into_each_other() -> None:
    a, b = replace(CLIP, digest="a", decode_backend="bc"), replace(CLIP, digest="ab", decode_backend="c")
    assert replace(KEY, media=(a,)).digest != replace(KEY, media=(b,)).digest


@given(facts, facts)
def test_digests_agree_exactly_where_the_facts_do(a: dict[str, object], b: dict[str, object]) -> None:
    def exact(facts: dict[str, object]) -> dict[str, tuple[type, str]]:
        return {
            name: (type(fact), fact.hex() if isinstance(fact, float) else str(fact)) for name, fact in facts.items()
        }

    assert (replace(KEY, facts=a).digest == replace(KEY, facts=b).digest) == (exact(a) == exact(b))


@pytest.mark.parametrize("fact", [None, np.float64(1), np.int64(1), (1,), b"1"])
def test_a_fact_without_a_canonical_form_is_refused(fact: object) -> None:
    with pytest.raises(TypeError, match="str, int, float or bool"):
        _ = replace(KEY, facts={"x": fact}).digest


def test_the_digest_is_the_same_for_ever() -> None:
    digest = replace(KEY, codec_version=1).digest
    assert digest == "3f597145eb553ca95c6532c3f4c2900fe9db984b92d75923bbfc8833ec0db247"
