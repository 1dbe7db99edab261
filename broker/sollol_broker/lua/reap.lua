-- reap: give back what dead workers held, end what is past its deadline. Anyone may run it at any time.
-- KEYS 1 fabric prefix
-- ARGV 1 most jobs to look at 2 crashes after which a job is dead; it runs alone, in quarantine, before the last one
-- returns {given back, dead, expired}
local STORM_MS = 600000                    -- deaths of other workers within this time speak for the job
local STORM_DEATHS = 2
local STORM_CHANCES = 3                    -- more tries for a job that may only have had bad luck

-- Whether so many other workers die that this job need not be the cause.
local function is_storm(F, crashes)
  return redis.call('ZCARD', F .. ':crashes') - crashes >= STORM_DEATHS
end

local function crashed(F, id, now, limit)
  local second = string.match(id, '^(.*)|h$')
  local job = job_key(F, second or id)
  local h = redis.call('HMGET', job, 'state', 'queue', 'member', 'rank', 'worker', 'hworker')
  local worker = second and h[6] or h[5]
  if h[1] == 'running' and worker then
    redis.call('ZADD', F .. ':crashes', ms(now), worker)
    redis.call('ZREMRANGEBYSCORE', F .. ':crashes', '-inf', ms(now - STORM_MS))
  end
  if h[1] ~= 'running' or second then
    if second then forget_hedge(F, second) else redis.call('ZREM', F .. ':leases', id) end
    return 0, 0
  end
  local crashes = redis.call('HINCRBY', job, 'crashes', 1)
  note_attempt(F, id, 'crash', now)
  if h[6] then promote_hedge(F, id) return 0, 0 end
  local was_alone = string.match(h[3], '|[a-z]*q[a-z]*|%x*$')
  local most = is_storm(F, crashes) and limit + STORM_CHANCES or limit
  if crashes >= most and (was_alone or limit < 2) then
    end_job(F, id, 'dead', '', now)
    redis.call('ZADD', F .. ':dead', ms(now), id)
    redis.call('ZREMRANGEBYRANK', F .. ':dead', 0, -DEAD_KEPT - 1)
    redis.call('ZREMRANGEBYSCORE', F .. ':dead', '-inf', ms(now - DEAD_TTL_MS))
    return 0, 1
  end
  local member = h[3]
  if crashes >= limit - 1 then member = with_flag(member, 'q') end
  redis.call('HDEL', job, 'alone_for', 'alone_at')
  requeue(F, id, h[2], member, h[4], 0, h[5])
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
    local h = redis.call('HMGET', job_key(F, string.match(furthest[i], '^[^|]*')), 'state', 'lease')
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
  look_at_queues(F, now)
  return {back, dead, expired}
end
verb('reap', reap, {'allow-oom'})
