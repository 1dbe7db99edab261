-- feed: give a batch its next items, and say whether they are the last. Safe to repeat: items it has are passed over.
-- KEYS 1 fabric prefix
-- ARGV 1 batch 2 index of the first item 3 these are the last 0|1 4… items
-- returns {'ok' | 'gap': what comes before the first is missing | 'over': it takes nothing more | 'full' | 'unknown',
--          items it has}
-- Not allow-oom: items are what a full Redis must refuse.
local function feed(keys, a)
  local F, id, first = keys[1], a[1], tonumber(a[2])
  local key, inputs, now = batch_key(F, id), batch_in_key(F, id), now_ms()
  local h = redis.call('HMGET', key, 'state', 'fed', 'closed', 'ttl')
  if not h[1] then return {'unknown', 0} end
  local fed = tonumber(h[2])
  if is_over(h[1]) or h[3] == '1' then return {'over', fed} end
  if first > fed then return {'gap', fed} end
  if #a > 3 and memory_is_full(F, now) then return {'full', fed} end
  local fields, bytes = {}, 0
  for i = 4 + fed - first, #a do
    fields[#fields + 1] = string.format('%.0f', fed)
    fields[#fields + 1] = a[i]
    fed, bytes = fed + 1, bytes + #a[i]
  end
  if #fields > 0 then redis.call('HSET', inputs, unpack(fields)) end
  redis.call('HINCRBY', key, 'in_bytes', bytes)
  redis.call('HSET', key, 'fed', fed, 'closed', a[3])
  keep_batch(F, id, h[4])
  end_if_done(F, id, now)
  return {'ok', fed}
end
verb('feed', feed)
