-- release: hand a job back unfinished, without blame (the worker drains). Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 id 2 fence 3 nonce
-- returns 1 | 0 the job is no longer the caller's
local function release(keys, a)
  local F, id = keys[1], a[1]
  local job = job_key(F, id)
  local h = redis.call('HMGET', job, 'state', 'fence', 'nonce', 'queue', 'member', 'rank', 'worker', 'hfence', 'hnonce')
  if runs_on(F, id, h[1], h[2], h[3], h[8], h[9], a[2], a[3]) then return 1 end
  if not held(h[1], h[2], h[3], a[2], a[3]) then return 0 end
  redis.call('HINCRBY', job, 'releases', 1)
  note_attempt(F, id, 'released', now_ms())
  requeue(F, id, h[4], h[5], h[6], 0, h[7])
  return 1
end
verb('release', release, {'allow-oom'})
