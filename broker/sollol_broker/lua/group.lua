-- group: write down what a group of nodes is, and let it live; the leader alone may. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 the leader 2 its term 3 key part of the group 4 TTL ms 5 fields (msgpack map of strings)
-- returns 1 | 0 the caller does not lead any more
-- allow-oom: a group whose leader cannot renew it would be torn down.
local function group(keys, a)
  local F, now = keys[1], now_ms()
  if not leads(F, a[1], a[2], now) then return 0 end
  local key = group_key(F, a[3])
  set_fields(key, cmsgpack.unpack(a[5]))
  redis.call('HSET', key, 'term', a[2])
  redis.call('PEXPIRE', key, a[4])
  redis.call('ZADD', F .. ':groups', ms(now + tonumber(a[4])), a[3])
  redis.call('ZREMRANGEBYSCORE', F .. ':groups', '-inf', ms(now))
  return 1
end
verb('group', group, {'allow-oom'})
