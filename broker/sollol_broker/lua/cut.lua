-- cut: open chunks, of items that are in none or of a chunk that failed. Safe to repeat: what is cut already stays so.
-- KEYS 1 fabric prefix
-- ARGV 1 batch, then start and count of each chunk: of the next items, or the first part of a failed chunk
-- returns how many were opened
-- allow-oom: what is accepted has to move on.
local function cut(keys, a)
  local F, id, now, opened = keys[1], a[1], now_ms(), 0
  local key, open = batch_key(F, id), batch_open_key(F, id)
  local h = redis.call('HMGET', key, 'state', 'next', 'fed', 'ttl')
  if not h[1] or is_over(h[1]) then return 0 end
  local next_at, fed = tonumber(h[2]), tonumber(h[3])
  for i = 2, #a, 2 do
    local start, count = tonumber(a[i]), tonumber(a[i + 1])
    local failed = tonumber(string.match(redis.call('HGET', open, a[i]) or '', '^(%d+)!$'))
    if failed and count > 0 and count < failed then
      redis.call('HSET', open, a[i], a[i + 1], string.format('%.0f', start + count), failed - count)
      opened = opened + 1
    elseif start == next_at and count > 0 and start + count <= fed then
      redis.call('HSET', open, a[i], a[i + 1])
      next_at, opened = start + count, opened + 1
    end
  end
  redis.call('HSET', key, 'next', next_at)
  if opened > 0 and h[1] == 'pending' then redis.call('HSET', key, 'state', 'running', 'started', ms(now)) end
  keep_batch(F, id, h[4])
  return opened
end
verb('cut', cut, {'allow-oom'})
