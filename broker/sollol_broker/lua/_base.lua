-- What several verbs share. Fields of a job's hash, all strings:
--   state model queue app priority stream inbox ttl      fixed at submit (queue = model key)
--   rank member submitted deadline                       order; times in ms of Redis' own clock
--   fence nonce worker node node_key claimed first seq   of the present attempt (node_key = key part of node)
--   lease                                                its length in ms
--   attempt crashes errors releases failed               counters; failed = "|node key|node key|"
--   failed_at                                            when the last attempt failed
--   env blobs requires                                   the body; deleted at the end
--   ended
local FENCED = true                        -- a test turns this off, and must then see answers doubled

local IDLE_TTL_MS = 60000                  -- an idle worker looks again every 1-2 s and renews this
local EVENTS_MAXLEN = 20000                -- entries; a stream longer than this is trimmed at its old end
local INBOX_MAXLEN = 100000
local ENDED_KEPT = 1000
local DEAD_KEPT = 10000
local TALLY_TTL_MS = 7 * 24 * 3600 * 1000

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + t[2] / 1000
end

-- Lua prints large numbers as 1.7e+12; scores and times need every digit.
local function ms(x) return string.format('%.3f', x) end

-- Whether the caller still owns the attempt. Both are needed: the counter orders attempts for readers, but
-- rolls back with a Redis that lost its last second; the nonce does not repeat.
local function held(state, fence, nonce, my_fence, my_nonce)
  if not FENCED then return state and true or false end
  return state == 'running' and fence == my_fence and nonce == my_nonce
end

-- Tells a follower's inbox; a process that is gone has none, and none is made for it.
local function tell(F, who, ...)
  if who and who ~= '' then
    return redis.call('XADD', inbox_key(F, who), 'NOMKSTREAM', 'MAXLEN', '~', INBOX_MAXLEN, '*', ...)
  end
  return false
end

local function wake(F, idle, worker, model)
  redis.call('ZREM', idle, worker)
  return tell(F, worker, 't', 'bell', 'm', model) and true or false
end

-- Wakes one worker: the cheapest that waits for this model and is still there. Returns whether one was woken.
-- last: a worker that is woken only if there is no other; nil for none.
local function ring(F, model, last)
  local idle, at = idle_key(F, model), 0
  for _ = 1, 8 do                          -- each turn drops one that died waiting
    local worker = redis.call('ZRANGE', idle, at, at)[1]
    if not worker then break end
    if worker == last then
      at = 1
    elseif wake(F, idle, worker, model) then
      return true
    end
  end
  return at == 1 and wake(F, idle, last, model)
end

-- A waiting job's member in its queue carries all that a claim needs to judge it, so one ZRANGE reads it:
-- id|prompt tokens|expected output tokens|submitted (whole ms)|flags, flags out of x (has failed somewhere), r (requires)
local function with_flag(member, flag)
  local head, flags = string.match(member, '^(.*|)([a-z]*)$')
  if string.find(flags, flag, 1, true) then return member end
  return head .. flags .. flag
end

-- Puts a job that is nobody's back in line, at its old rank; due > 0: not before that moment. from: the worker
-- that loses it, and so is woken for it only if no other waits.
local function requeue(F, id, model, member, rank, due, from)
  local job = job_key(F, id)
  redis.call('HSET', job, 'state', 'queued', 'member', member)
  redis.call('HDEL', job, 'nonce', 'worker')
  redis.call('ZREM', F .. ':leases', id)
  redis.call('HINCRBY', F .. ':stats', 'requeued', 1)
  if due > 0 then
    redis.call('ZADD', F .. ':delayed', ms(due), id)
  else
    redis.call('ZADD', queue_key(F, model), rank, member)
    ring(F, model, from)
  end
end

-- Moves jobs whose backoff is over back into their queues.
local function promote(F, now)
  local due = redis.call('ZRANGEBYSCORE', F .. ':delayed', '-inf', ms(now), 'LIMIT', 0, 16)
  for _, id in ipairs(due) do
    redis.call('ZREM', F .. ':delayed', id)
    local h = redis.call('HMGET', job_key(F, id), 'state', 'queue', 'member', 'rank')
    if h[1] == 'queued' then
      redis.call('ZADD', queue_key(F, h[2]), h[4], h[3])
      ring(F, h[2])
    end
  end
end

-- The one and only end of a job: data (the answer or the error, msgpack; '' where the state says it all) goes to its
-- events and to its submitter, the body goes away, the rest stays for the result's TTL. The caller has checked that the
-- job has not ended.
local function end_job(F, id, state, data, now)
  local job = job_key(F, id)
  local h = redis.call('HMGET', job, 'fence', 'inbox', 'ttl', 'deadline', 'queue', 'member', 'node_key', 'claimed', 'state',
    'blobs')
  redis.call('HSET', job, 'state', state, 'ended', ms(now))
  if state ~= 'dead' then redis.call('HDEL', job, 'env', 'requires', 'member') end
  if h[10] ~= '0' then redis.call('DEL', blob_key(F, id)) end
  if h[9] == 'running' then
    redis.call('ZREM', F .. ':leases', id)
  elseif h[6] then
    redis.call('ZREM', queue_key(F, h[5]), h[6])
    redis.call('ZREM', F .. ':delayed', id)
  end
  if h[4] ~= '0' then redis.call('ZREM', F .. ':deadlines', id) end
  local fence, events, ttl = h[1] or '0', events_key(F, id), h[3]
  redis.call('XADD', events, '*', 't', 'end', 'x', state, 'f', fence, 'd', data)
  redis.call('PEXPIRE', events, ttl)
  redis.call('PEXPIRE', job, ttl)
  tell(F, h[2], 't', 'end', 'j', id, 'x', state, 'f', fence, 'd', data)
  redis.call('LPUSH', F .. ':ended', id)
  redis.call('LTRIM', F .. ':ended', 0, ENDED_KEPT - 1)
  redis.call('HINCRBY', F .. ':stats', state, 1)
  if h[9] == 'running' and h[7] then
    local tally = tally_key(F, h[7])
    redis.call('HINCRBY', tally, state, 1)
    redis.call('HINCRBYFLOAT', tally, 'busy_ms', ms(now - tonumber(h[8])))
    redis.call('PEXPIRE', tally, TALLY_TTL_MS)
  end
end

local function verb(name, callback, flags)
  redis.register_function{function_name = 'sollol_@VERSION@_' .. name, callback = callback, flags = flags or {}}
end
