-- fail: the attempt did not work out. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 id 2 fence 3 nonce 4 error (msgpack) 5 retry: 0 = nowhere, 1 = yes, 2 = only on other nodes 6 errors allowed before that is the end
--      7 backoff ms after the first error; it doubles with each
-- returns 'retry' | 'end' | 'stale': the job is no longer the caller's
local MOST_BACKOFF_MS = 30000
-- Bodies of jobs that failed on every try are kept as long as their results, so that they can be tried again (letters.lua):
-- so many, of at most so many bytes each.
local FAILED_KEPT, FAILED_BYTES = 500, 131072

local function drop_body(F, id)
  redis.call('ZREM', F .. ':failed', id)
  redis.call('DEL', blob_key(F, id))
  if redis.call('EXISTS', job_key(F, id)) == 1 then redis.call('HDEL', job_key(F, id), 'requires', 'member') end
end

-- Whether the body of a job that fails now is kept; room is made for it.
local function keeps_body(F, id, now)
  local bytes, blob, failed = 0, blob_key(F, id), F .. ':failed'
  for _, name in ipairs(redis.call('HKEYS', blob)) do bytes = bytes + redis.call('HSTRLEN', blob, name) end
  if bytes > FAILED_BYTES then return false end
  redis.call('ZADD', failed, ms(now), id)
  for _, oldest in ipairs(redis.call('ZRANGE', failed, 0, -FAILED_KEPT - 1)) do drop_body(F, oldest) end
  return true
end

local function fail(keys, a)
  local F, id = keys[1], a[1]
  local job, now = job_key(F, id), now_ms()
  local h = redis.call('HMGET', job, 'state', 'fence', 'nonce', 'queue', 'member', 'rank', 'failed', 'node_key', 'worker',
    'hfence', 'hnonce')
  -- What is wrong with the request is said by the first copy; the second one goes whatever its error.
  local is_second = h[10] == a[2] and h[11] == a[3]
  if (a[5] ~= '0' or is_second) and runs_on(F, id, h[1], h[2], h[3], h[10], h[11], a[2], a[3]) then return 'retry' end
  if not held(h[1], h[2], h[3], a[2], a[3]) then return 'stale' end
  local errors = redis.call('HINCRBY', job, 'errors', 1)
  local failed = h[7] or '|'
  if not string.find(failed, '|' .. h[8] .. '|', 1, true) then failed = failed .. h[8] .. '|' end
  local better = has_better(F, h[4], failed, now)
  if a[5] == '0' or errors >= tonumber(a[6]) or (a[5] == '2' and not better) then
    -- Whatever is wrong with the request itself would be wrong again; what a node cannot do, it will not do in a second.
    end_job(F, id, 'failed', a[4], now, nil, a[5] ~= '0' and keeps_body(F, id, now))
    return 'end'
  end
  note_attempt(F, id, 'error', now)
  redis.call('HSET', job, 'failed', failed, 'failed_at', ms(now))
  -- Another node may begin at once after a first error; otherwise the job waits longer each time.
  local due = errors == 1 and better and 0 or now + math.min(MOST_BACKOFF_MS, tonumber(a[7]) * 2 ^ (errors - 1))
  requeue(F, id, h[4], with_flag(h[5], 'x'), h[6], due, h[9])
  return 'retry'
end
verb('fail', fail, {'allow-oom'})
