"""The identity of a cached state: every fact that must agree before one may stand in for a computation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from occam.config import Wire
from occam.kv.codec import CODEC_VERSION
from occam.types import MediaKind

Fact = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class MediumKey:
    """One video or image of a state.

    digest: SHA-256 (hex) of the source's bytes; never its address
    frame_indices: exact indices of the sampled frames in the source's presentation order
    decode_backend: decoder and version that produced the pixels, as `decord 0.6.0`
    """

    kind: MediaKind
    digest: str
    frame_indices: tuple[int, ...]
    decode_backend: str


@dataclass(frozen=True, kw_only=True, eq=False)
class KVKey:
    """What one prefix state was computed from; two keys name the same state iff their digests are equal.

    media: all of them, in the order of the prompt
    facts: what the engine says of itself: model, tokenizer and template digests, dtype, device kind, threads, cut,
    strategy and its parameters (lambda2 acts after the state and is none), register artefact, chunking, preprocessing
    tenant_salt: separates tenants, so that none can probe what another has asked about
    wire: how states go to tiers that others share; over a lossy one a state may come back approximate, and says so
    """

    media: tuple[MediumKey, ...]
    facts: Mapping[str, Fact]
    tenant_salt: str = ""
    wire: Wire = "exact"
    codec_version: int = CODEC_VERSION

    def __repr__(self) -> str:
        media = ", ".join(f"{len(medium.frame_indices)} of {medium.kind} {medium.digest[:8]}" for medium in self.media)
        return f"KVKey({self.digest[:12]}, frames: {media})"

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the key's canonical form; raises TypeError on a fact that has none."""
        canonical = {
            "media": [
                {
                    "kind": _tagged(medium.kind),
                    "digest": _tagged(medium.digest),
                    "frame_indices": [_tagged(index) for index in medium.frame_indices],
                    "decode_backend": _tagged(medium.decode_backend),
                }
                for medium in self.media
            ],
            "facts": {name: _tagged(fact) for name, fact in self.facts.items()},
            "tenant_salt": _tagged(self.tenant_salt),
            "wire": _tagged(self.wire),
            "codec_version": _tagged(self.codec_version),
        }
        return sha256(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _tagged(fact: Fact) -> list[str]:
    """`fact` with its type, so that 1, 1.0, True and "1" differ; floats exactly, in hexadecimal."""
    kind = type(fact)
    if kind not in (str, int, float, bool):
        raise TypeError(f"a fact of a key must be str, int, float or bool, got {kind.__name__}")
    return [kind.__name__, fact.hex() if isinstance(fact, float) else str(fact)]
