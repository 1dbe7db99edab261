-- spoil: end a chunk of one item that cannot become a job. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 batch 2 start 3 error (msgpack)
-- returns 1 | 0: there is no such chunk, or it is not alone
-- allow-oom: what is accepted has to move on.
local function spoil(keys, a)
  local F, id = keys[1], a[1]
  local state = redis.call('HGET', batch_key(F, id), 'state')
  local count = string.match(redis.call('HGET', batch_open_key(F, id), a[2]) or '', '^(%d+)!?$')
  if not state or is_over(state) or count ~= '1' then return 0 end
  settle_chunk(F, id, a[2], count, 'failed', count, a[3], now_ms())
  return 1
end
verb('spoil', spoil, {'allow-oom'})
