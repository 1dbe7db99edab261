-- cancel: end a job unanswered, waiting or running. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 id
-- returns 'cancelled' | the state in which it had already ended | 'unknown'
local function cancel(keys, a)
  local F, id = keys[1], a[1]
  local h = redis.call('HMGET', job_key(F, id), 'state', 'worker', 'fence')
  if not h[1] then return 'unknown' end
  if h[1] ~= 'queued' and h[1] ~= 'running' then return affirmed(job_key(F, id), h[1]) end
  end_job(F, id, 'cancelled', '', now_ms())
  if h[1] == 'running' then tell(F, h[2], 't', 'cancel', 'j', id, 'f', h[3]) end
  return 'cancelled'
end
verb('cancel', cancel, {'allow-oom'})
