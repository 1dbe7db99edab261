-- halt: end a batch before its time, and each of its jobs. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 batch 2 'cancelled' | 'failed' 3 why
-- returns the state in which it is now, or 'unknown'
-- allow-oom: it frees memory.
local function halt(keys, a)
  local F, id, now = keys[1], a[1], now_ms()
  local h = redis.call('HMGET', batch_key(F, id), 'state', 'tag')
  if not h[1] then return 'unknown' end
  if is_over(h[1]) then return h[1] end
  end_batch(F, id, a[2], now, a[3])
  local open = redis.call('HGETALL', batch_open_key(F, id))  -- no more than a window
  for i = 1, #open, 2 do
    if string.find(open[i + 1], '^%d+$') then
      cancel_job(F, id .. '~' .. h[2] .. '~' .. open[i] .. '~' .. open[i + 1], now)
    end
  end
  redis.call('DEL', batch_open_key(F, id))
  return a[2]
end
verb('halt', halt, {'allow-oom'})
