-- fail: the attempt did not work out. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 id 2 fence 3 nonce 4 error (msgpack) 5 retry elsewhere 0|1 6 errors allowed before that is the end
--      7 backoff ms after the first error; it doubles with each
-- returns 'retry' | 'end' | 'stale': the job is no longer the caller's
local MOST_BACKOFF_MS = 30000
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
  if a[5] == '0' or errors >= tonumber(a[6]) then
    end_job(F, id, 'failed', a[4], now)
    return 'end'
  end
  note_attempt(F, id, 'error', now)
  local failed = h[7] or '|'
  if not string.find(failed, '|' .. h[8] .. '|', 1, true) then failed = failed .. h[8] .. '|' end
  redis.call('HSET', job, 'failed', failed, 'failed_at', ms(now))
  -- Another node may begin at once after a first error; otherwise the job waits longer each time.
  local elsewhere = errors == 1 and has_better(F, h[4], failed, now)
  local due = elsewhere and 0 or now + math.min(MOST_BACKOFF_MS, tonumber(a[7]) * 2 ^ (errors - 1))
  requeue(F, id, h[4], with_flag(h[5], 'x'), h[6], due, h[9])
  return 'retry'
end
verb('fail', fail, {'allow-oom'})
