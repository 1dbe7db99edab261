-- fail: the attempt did not work out. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 id 2 fence 3 nonce 4 error (msgpack) 5 retry elsewhere 0|1 6 errors allowed before that is the end 7 backoff ms
-- returns 'retry' | 'end' | 'stale': the job is no longer the caller's
local function fail(keys, a)
  local F, id = keys[1], a[1]
  local job = job_key(F, id)
  local h = redis.call('HMGET', job, 'state', 'fence', 'nonce', 'queue', 'member', 'rank', 'failed', 'node_key', 'worker')
  if not held(h[1], h[2], h[3], a[2], a[3]) then return 'stale' end
  local errors = redis.call('HINCRBY', job, 'errors', 1)
  local now = now_ms()
  if a[5] == '0' or errors >= tonumber(a[6]) then
    end_job(F, id, 'failed', a[4], now)
    return 'end'
  end
  local failed = h[7] or '|'
  if not string.find(failed, '|' .. h[8] .. '|', 1, true) then failed = failed .. h[8] .. '|' end
  redis.call('HSET', job, 'failed', failed, 'failed_at', ms(now))
  -- Another node may begin at once; only a job that has nowhere else to go waits out the backoff.
  local due = has_better(F, h[4], failed, now) and 0 or now + tonumber(a[7])
  requeue(F, id, h[4], with_flag(h[5], 'x'), h[6], due, h[9])
  return 'retry'
end
verb('fail', fail, {'allow-oom'})
