-- shed: drop results that have been read. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 batch, then "start:count:state:sent" of each chunk
-- returns how many were dropped
-- allow-oom: it frees memory.
local function shed(keys, a)
  local F, id, bytes, dropped = keys[1], a[1], 0, 0
  local key, out, map = batch_key(F, id), batch_out_key(F, id), batch_map_key(F, id)
  if redis.call('EXISTS', key) == 0 then return 0 end
  for i = 2, #a do
    local start = string.match(a[i], '^(%d+):')
    if start and redis.call('ZREM', map, a[i]) == 1 then
      bytes, dropped = bytes + redis.call('HSTRLEN', out, start), dropped + 1
      redis.call('HDEL', out, start)
    end
  end
  redis.call('HINCRBY', key, 'out_bytes', -bytes)
  return dropped
end
verb('shed', shed, {'allow-oom'})
