-- ask: put a wish to whoever leads. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 the wish (msgpack)
-- returns 1 | 0 nobody leads, or the leader is not there
local function ask(keys, a)
  local leader, _, left = read_leader(keys[1], now_ms())
  return left > 0 and tell(keys[1], leader, 't', 'ask', 'd', a[1]) and 1 or 0
end
verb('ask', ask, {'allow-oom'})
