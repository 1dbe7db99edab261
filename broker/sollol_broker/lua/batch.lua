-- batch: take a batch in, without its items. Safe to repeat: the id decides.
-- KEYS 1 fabric prefix
-- ARGV 1 id 2 fields (msgpack map of strings; tag, digest and ttl among them) 3 template
-- returns {'new'} | {'known', digest} | {'full'}
-- Not allow-oom: it begins work.
local PRUNED_AT_ONCE = 8

local function batch(keys, a)
  local F, id, now = keys[1], a[1], now_ms()
  local key, list = batch_key(F, id), F .. ':batches'
  local digest = redis.call('HGET', key, 'digest')
  if digest then
    redis.call('HSET', key, 'digest', digest)
    return {'known', digest}
  end
  if memory_is_full(F, now) then return {'full'} end
  local fields = cmsgpack.unpack(a[2])
  set_fields(key, fields)
  redis.call('HSET', key, 'template', a[3], 'state', 'pending', 'created', ms(now), 'fed', 0, 'closed', 0, 'next', 0, 'in_bytes', 0,
    'out_bytes', 0, 'completed', 0, 'failed', 0, 'why', '', 'driver', '', 'until', '0')
  keep_batch(F, id, fields.ttl)
  for _, old in ipairs(redis.call('ZRANGE', list, 0, PRUNED_AT_ONCE - 1)) do
    if redis.call('EXISTS', batch_key(F, old)) == 0 then redis.call('ZREM', list, old) end
  end
  redis.call('ZADD', list, ms(now), id)
  redis.call('ZREMRANGEBYRANK', list, 0, -BATCHES_KEPT - 1)
  redis.call('ZADD', F .. ':batch_due', ms(now), id)
  return {'new'}
end
verb('batch', batch)
