"""Who refers to what, in Redis: sets of video ids for cached states and for local copies, and the states' keys.

States are shared by the videos of one salt that have the same bytes, local copies by all videos that have them. Ids of
videos that have expired stay in the sets until somebody counts, and count as nothing.
"""

from dataclasses import dataclass

from occam.kv.key import KVKey


@dataclass(frozen=True, kw_only=True)
class Last:
    """Whether no other video refers to the states, and to the copies; and the states' keys, where none does."""

    states: bool
    copies: bool
    keys: tuple[KVKey, ...]


@dataclass(frozen=True)
class Sets:
    """The names in Redis of what is kept about media of one digest."""

    salt: str
    digest: str

    @property
    def states(self) -> str:
        """Ids of the videos that refer to the cached states."""
        return f"refs:{self.salt}:{self.digest}"

    @property
    def keys(self) -> str:
        """Keys of the cached states."""
        return f"keys:{self.salt}:{self.digest}"

    @property
    def copies(self) -> str:
        """Ids of the videos that refer to the local copies."""
        return f"copies:{self.digest}"

    @property
    def dropped(self) -> str:
        """Is there for a while after the copies went: what was described before may have none."""
        return f"dropped:{self.digest}"

    @property
    def lock(self) -> str:
        """Held by whoever gives references to the copies, or takes the last one away."""
        return f"lock:{self.digest}"


_ALONE = """
local function alone(refs, id)
  for _, other in ipairs(redis.call('SMEMBERS', refs)) do
    if other ~= id then
      if redis.call('EXISTS', 'video:' .. other) == 1 then return 1 == 0 end
      redis.call('SREM', refs, other)
    end
  end
  return 1 == 1
end
"""

RELEASE = (
    _ALONE
    + """
-- KEYS: states, keys, copies, dropped; ARGV: video id, seconds that `dropped` stays, whether to remove the video
local states, copies = alone(KEYS[1], ARGV[1]), alone(KEYS[3], ARGV[1])
local keys = {}
if states then keys = redis.call('SMEMBERS', KEYS[2]) end
if copies then redis.call('SET', KEYS[4], '', 'EX', ARGV[2]) end
if ARGV[3] == '1' then
  redis.call('DEL', 'video:' .. ARGV[1])
  redis.call('SREM', KEYS[1], ARGV[1])
  redis.call('SREM', KEYS[3], ARGV[1])
  if states then redis.call('DEL', KEYS[2]) end
end
return {states and 1 or 0, copies and 1 or 0, keys}
"""
)
"""What goes with a video, and with `1` at last the video itself, in one step."""

NOTE = (
    _ALONE
    + """
-- KEYS: states, keys; ARGV: video id, key, seconds to live
if redis.call('EXISTS', 'video:' .. ARGV[1]) == 1 then redis.call('SADD', KEYS[1], ARGV[1]) end
if alone(KEYS[1], '') then return 0 end
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
"""
)
"""Remember a state's key, unless nobody refers to the states any more."""
