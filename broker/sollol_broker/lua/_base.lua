-- What several verbs share. Fields of a job's hash, all strings:
--   state model queue app priority stream inbox ttl      fixed at submit (queue = model key)
--   rank member submitted deadline                       order; times in ms of Redis' own clock
--   task chars extra context cache hedge prefer          what is known of the request (features.py)
--   fair                                                 its turn: see _fair.lua
--   top                                                  the highest fence given out
--   fence nonce worker node node_key claimed first seq   of the present attempt (node_key = key part of node)
--   lease predicted                                      its length, and the predicted run time, in ms
--   hfence hnonce hworker hnode hnode_key hclaimed       of the second copy, while there is one: see _hedge.lua
--   attempt crashes errors releases failed               counters; failed = "|node key|node key|"
--   failed_at                                            when the last attempt failed
--   blobs requires                                       pictures beside the envelope; what a node must have
--   why no:NODE past                                     for `explain`: how it was claimed; who left it and why;
--                                                        attempts without an answer, "attempt,node,claimed,ended,how;",
--                                                        how with "@first piece" where there was one
--   seams                                                where attempts went on with the text of earlier ones,
--                                                        "attempt,node,at,offset,how;"
--   ended tokens                                         when; "prompt tokens|output tokens" of the answer, -1: not known
-- Whether the caller still owns the attempt. Both are needed: the counter orders attempts for readers, but
-- rolls back with a Redis that lost its last second; the nonce does not repeat.
local function held(state, fence, nonce, my_fence, my_nonce)
  if not FENCED then return state and true or false end
  return state == 'running' and fence == my_fence and nonce == my_nonce
end

-- The envelope lies with the pictures, apart from the record: who may read records need not read prompts.
local function envelope_of(F, id) return redis.call('HGET', blob_key(F, id), 'env') end

-- Writes what stands there already. Whoever repeats a call asks the server next whether a replica has it
-- (WAIT); a connection that has written nothing would be told yes.
local function affirmed(job, state)
  redis.call('HSET', job, 'state', state)
  return state
end

-- Tells a follower's inbox; a process that is gone has none, and none is made for it.
local function tell(F, who, ...)
  if who and who ~= '' then
    return redis.call('XADD', inbox_key(F, who), 'NOMKSTREAM', 'MAXLEN', '~', INBOX_MAXLEN, '*', ...)
  end
  return false
end

-- Says that an attempt begins.
local function say_start(F, id, inbox, fence, node, worker)
  local at = redis.call('XADD', events_key(F, id), '*', 't', 'start', 'f', fence, 'n', node, 'w', worker)
  tell(F, inbox, 't', 'start', 'j', id, 'e', at, 'f', fence, 'n', node, 'w', worker)
end

local function wake(F, model, worker)
  redis.call('ZREM', idle_key(F, model), worker)
  redis.call('ZREM', armed_key(F, model), worker)
  return tell(F, worker, 't', 'bell', 'm', model) and true or false
end

-- Wakes one worker: the cheapest that waits for this model and is still there; without one, a worker that would help at
-- the backlog there is now. Returns whether one was woken.
-- last: a worker that is woken only if there is no other; nil for none.
local function ring(F, model, last)
  local at = 0
  for _ = 1, 8 do                          -- each turn drops one that died waiting
    local worker = redis.call('ZRANGE', idle_key(F, model), at, at)[1]
    if not worker then break end
    if worker == last then
      at = 1
    elseif wake(F, model, worker) then
      return true
    end
  end
  for _ = 1, 8 do
    local first = redis.call('ZRANGE', armed_key(F, model), 0, 0, 'WITHSCORES')
    if not first[1] or tonumber(first[2]) > redis.call('ZCARD', queue_key(F, model)) then break end
    if wake(F, model, first[1]) then return true end
  end
  return at == 1 and wake(F, model, last)
end

-- The workers of a model have become fewer or slower: somebody who declined may have to help now.
local function rouse(F, model)
  if redis.call('EXISTS', queue_key(F, model)) == 0 or ring(F, model) then return end
  local worker = redis.call('ZRANGE', armed_key(F, model), 0, 0)[1]
  if worker then wake(F, model, worker) end
end

-- A waiting job's member in its queue carries all that a claim needs to judge it, so one ZRANGE reads it:
-- id|prompt tokens|expected output tokens|submitted (whole ms)|flags|affinity
-- flags out of b (batch), c (needs a longer context than its prompt), p (prefers nodes), q (quarantine), r (requires),
-- x (has failed somewhere)
local function with_flag(member, flag)
  local head, flags, affinity = string.match(member, '^(.*|)([a-z]*)(|[^|]*)$')
  if string.find(flags, flag, 1, true) then return member end
  return head .. flags .. flag .. affinity
end

-- Notes how an attempt ended that gave no answer.
local function note_attempt(F, id, how, now)
  local job = job_key(F, id)
  local h = redis.call('HMGET', job, 'past', 'attempt', 'node', 'claimed', 'first')
  if h[5] and tonumber(h[5]) >= tonumber(h[4] or 0) then how = how .. '@' .. h[5] end
  local past = (h[1] or '') .. string.format('%s,%s,%s,%s,%s;', h[2], h[3] or '', h[4] or '', ms(now), how)
  if #past < 4000 then redis.call('HSET', job, 'past', past) end
end

-- Notes that the present attempt goes on with what earlier ones have said.
local function note_seam(F, id, offset, how, now)
  local job = job_key(F, id)
  local h = redis.call('HMGET', job, 'seams', 'attempt', 'node')
  local seams = (h[1] or '') .. string.format('%s,%s,%s,%s,%s;', h[2], h[3] or '', ms(now), offset, how)
  if #seams < 4000 then redis.call('HSET', job, 'seams', seams) end
end

-- Puts a job that is nobody's back in line, at its old rank; due > 0: not before that moment. from: the worker
-- that loses it, and so is woken for it only if no other waits.
local function requeue(F, id, model, member, rank, due, from)
  local job = job_key(F, id)
  redis.call('HSET', job, 'state', 'queued', 'member', member)
  redis.call('HDEL', job, 'nonce', 'worker')
  redis.call('ZREM', F .. ':leases', id)
  redis.call('ZREM', F .. ':hedges', id)
  redis.call('HINCRBY', F .. ':stats', 'requeued', 1)
  rejoin_line(F, model, read_fair(redis.call('HGET', job, 'fair')))
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

-- What a second copy leaves behind when it is no longer one.
local function forget_hedge(F, id)
  redis.call('HDEL', job_key(F, id), 'hfence', 'hnonce', 'hworker', 'hnode', 'hnode_key', 'hclaimed')
  if redis.call('ZREM', F .. ':leases', id .. '|h') == 1 then redis.call('HINCRBY', F .. ':stats', 'second_copies', -1) end
end

-- The answer of a job that ran to its end is kept for those who asked the same; any other end lets them ask anew.
local function settle_cache(F, id, model, request, state, ttl, now)
  if request == '' or redis.call('GET', cache_key(F, request)) ~= id then return end
  if state ~= 'done' then
    redis.call('DEL', cache_key(F, request))
    return
  end
  redis.call('PEXPIRE', cache_key(F, request), ttl)
  local cached = cached_key(F, model)
  redis.call('ZADD', cached, ms(now + ttl), request)
  redis.call('ZREMRANGEBYSCORE', cached, '-inf', ms(now))
  if redis.call('PTTL', cached) < tonumber(ttl) then redis.call('PEXPIRE', cached, ttl) end
end

-- The one and only end of a job: data (the answer or the error, msgpack; '' where the state says it all) goes to its
-- events and to its submitter, the body goes away (a dead letter keeps it, to be tried again), the rest stays for the
-- result's TTL. used: reference ms that it took, nil if not known. keeps_body: as long as the result, see fail.lua.
-- The caller has checked that the job has not ended.
local function end_job(F, id, state, data, now, used, keeps_body)
  local job = job_key(F, id)
  local h = redis.call('HMGET', job, 'fence', 'inbox', 'ttl', 'deadline', 'queue', 'member', 'node_key', 'claimed', 'state',
    'fair', 'cache', 'hworker', 'hfence', 'hedge')
  local is_dead, waited, fair = state == 'dead', h[9] ~= 'running', read_fair(h[10])
  redis.call('HSET', job, 'state', state, 'ended', ms(now))
  if is_dead then
    redis.call('PEXPIRE', blob_key(F, id), DEAD_TTL_MS)
  elseif keeps_body then
    redis.call('PEXPIRE', blob_key(F, id), h[3])
  else
    redis.call('HDEL', job, 'requires', 'member')
    redis.call('DEL', blob_key(F, id))
  end
  if waited then
    if h[6] then redis.call('ZREM', queue_key(F, h[5]), h[6]) end
    redis.call('ZREM', F .. ':delayed', id)
  else
    redis.call('ZREM', F .. ':leases', id)
    if h[14] == '1' then redis.call('ZREM', F .. ':hedges', id) end
    if h[13] then
      tell(F, h[12], 't', 'cancel', 'j', id, 'f', h[13])
      forget_hedge(F, id)
    end
  end
  if h[4] ~= '0' then redis.call('ZREM', F .. ':deadlines', id) end
  local fence, events, ttl = h[1] or '0', events_key(F, id), h[3]
  local at = redis.call('XADD', events, '*', 't', 'end', 'x', state, 'f', fence, 'd', data)
  redis.call('PEXPIRE', events, ttl)
  redis.call('PEXPIRE', job, is_dead and DEAD_TTL_MS or ttl)
  tell(F, h[2], 't', 'end', 'j', id, 'e', at, 'x', state, 'f', fence, 'd', data)
  -- A batch has thousands of chunks, whose records go within seconds: they do not push the others out.
  local is_chunk = chunk_of(id) ~= nil
  local ended = is_chunk and F .. ':ended_chunks' or F .. ':ended'
  redis.call('LPUSH', ended, id)
  redis.call('LTRIM', ended, 0, ENDED_KEPT - 1)
  if is_chunk then redis.call('PEXPIRE', ended, ttl) end
  redis.call('HINCRBY', F .. ':stats', state, 1)
  if fair.bytes > 0 then redis.call('HINCRBY', F .. ':stats', 'bytes', -fair.bytes) end
  if fair.counted then redis.call('HINCRBY', usage_key(F, fair.app), 'n', -1) end
  note_ended(F, fair.app, state)
  settle(F, h[5], fair, waited, used)
  settle_cache(F, id, h[5], h[11] or '', state, ttl, now)
  end_chunk(F, id, state, data, now)
  if not waited and h[7] then
    local tally = tally_key(F, h[7])
    redis.call('HINCRBY', tally, state, 1)
    redis.call('HINCRBYFLOAT', tally, 'busy_ms', ms(now - tonumber(h[8])))
    redis.call('PEXPIRE', tally, TALLY_TTL_MS)
  end
end

-- Ends a job unanswered, waiting or running; returns 'cancelled' | the state in which it had already ended | 'unknown'
local function cancel_job(F, id, now)
  local h = redis.call('HMGET', job_key(F, id), 'state', 'worker', 'fence')
  if not h[1] then return 'unknown' end
  if h[1] ~= 'queued' and h[1] ~= 'running' then return affirmed(job_key(F, id), h[1]) end
  end_job(F, id, 'cancelled', '', now)
  if h[1] == 'running' then tell(F, h[2], 't', 'cancel', 'j', id, 'f', h[3]) end
  return 'cancelled'
end

local function verb(name, callback, flags)
  redis.register_function{function_name = 'sollol_@VERSION@_' .. name, callback = callback, flags = flags or {}}
end
