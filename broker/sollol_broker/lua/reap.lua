-- reap: give back what dead workers held, end what is past its deadline. Anyone may run it at any time.
-- KEYS 1 fabric prefix
-- ARGV 1 most jobs to look at 2 crashes after which a job is dead
-- returns {given back, dead, expired}
local function crashed(F, id, now, limit)
  local job = job_key(F, id)
  local h = redis.call('HMGET', job, 'state', 'queue', 'member', 'rank', 'worker')
  if h[1] ~= 'running' then
    redis.call('ZREM', F .. ':leases', id)
    return 0, 0
  end
  if redis.call('HINCRBY', job, 'crashes', 1) >= limit then
    end_job(F, id, 'dead', '', now)
    redis.call('ZADD', F .. ':dead', ms(now), id)
    redis.call('ZREMRANGEBYRANK', F .. ':dead', 0, -DEAD_KEPT - 1)
    return 0, 1
  end
  requeue(F, id, h[2], h[3], h[4], 0, h[5])
  return 1, 0
end

local function reap(keys, a)
  local F, most, now = keys[1], tonumber(a[1]), now_ms()
  local back, dead, expired = 0, 0, 0
  local ids = redis.call('ZRANGEBYSCORE', F .. ':leases', '-inf', ms(now), 'LIMIT', 0, most)
  -- A lease further off than two of its lengths was made before the clock stepped back: it would not end for as long.
  local furthest = redis.call('ZRANGE', F .. ':leases', 0, most - 1, 'REV', 'WITHSCORES')
  for i = 1, #furthest, 2 do
    local left = tonumber(furthest[i + 1]) - now
    local h = redis.call('HMGET', job_key(F, furthest[i]), 'state', 'lease')
    -- A lease without its length was claimed by another release: not ours to judge.
    if not h[1] or (h[2] and left > 2 * tonumber(h[2])) then ids[#ids + 1] = furthest[i] end
  end
  for _, id in ipairs(ids) do
    local b, d = crashed(F, id, now, tonumber(a[2]))
    back, dead = back + b, dead + d
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', F .. ':deadlines', '-inf', ms(now), 'LIMIT', 0, most)) do
    local h = redis.call('HMGET', job_key(F, id), 'state', 'worker', 'fence')
    if h[1] == 'queued' or h[1] == 'running' then
      end_job(F, id, 'expired', '', now)
      if h[1] == 'running' then tell(F, h[2], 't', 'cancel', 'j', id, 'f', h[3]) end
      expired = expired + 1
    else
      redis.call('ZREM', F .. ':deadlines', id)
    end
  end
  promote(F, now)
  return {back, dead, expired}
end
verb('reap', reap, {'allow-oom'})
