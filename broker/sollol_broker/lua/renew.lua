-- renew: keep the leases of the jobs a worker runs. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 lease ms 2… id, fence, nonce of each job
-- returns the ids that are no longer the caller's
local function renew(keys, a)
  local F, lost, deadline = keys[1], {}, ms(now_ms() + tonumber(a[1]))
  for i = 2, #a, 3 do
    local h = redis.call('HMGET', job_key(F, a[i]), 'state', 'fence', 'nonce', 'lease', 'hfence', 'hnonce')
    if held(h[1], h[2], h[3], a[i + 1], a[i + 2]) then
      redis.call('ZADD', F .. ':leases', deadline, a[i])
      if h[4] ~= a[1] then redis.call('HSET', job_key(F, a[i]), 'lease', a[1]) end
    elseif h[1] == 'running' and h[5] == a[i + 1] and h[6] == a[i + 2] then
      redis.call('ZADD', F .. ':leases', deadline, a[i] .. '|h')
    else
      lost[#lost + 1] = a[i]
    end
  end
  return lost
end
verb('renew', renew, {'allow-oom'})
