-- finish: give a job its answer and, in the same call, claim the next. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 id 2 fence 3 nonce 4 answer (msgpack) 5… the arguments of claim, or none
-- returns {1 taken | 0 the job is no longer the caller's, claim's reply or nothing}
-- allow-oom: an answer must get out when memory is full; it frees more than it takes.
local function finish(keys, a)
  local F, id = keys[1], a[1]
  local h = redis.call('HMGET', job_key(F, id), 'state', 'fence', 'nonce')
  local taken = 0
  if held(h[1], h[2], h[3], a[2], a[3]) then
    end_job(F, id, 'done', a[4], now_ms())
    taken = 1
  elseif h[1] == 'done' and h[2] == a[2] and h[3] == a[3] then
    taken = 1                              -- this very call, repeated
  end
  if #a > 4 then return {taken, claim_for(F, a, 5)} end
  return {taken}
end
verb('finish', finish, {'allow-oom'})
