-- part: say that the answer to come is for the first items of a chunk only; the others become a chunk again. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 id 2 fence 3 nonce 4 items
-- returns 1 | 0 the job is no longer the caller's
-- allow-oom: an answer must get out when memory is full.
local function part(keys, a)
  local job = job_key(keys[1], a[1])
  local h = redis.call('HMGET', job, 'state', 'fence', 'nonce')
  if not held(h[1], h[2], h[3], a[2], a[3]) then return 0 end
  redis.call('HSET', job, 'part', a[2] .. ':' .. a[4])   -- of this attempt: the next one may answer all of it
  return 1
end
verb('part', part, {'allow-oom'})
