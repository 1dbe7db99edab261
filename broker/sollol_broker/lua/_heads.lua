-- What a worker sees of the queues it serves: the jobs at their heads that fit it, priced for the rule.
-- A node that failed a job leaves it to the others; but whether those can take it is not known here, so not for ever.
local FAILED_PATIENCE_MS = 30000
-- Jobs looked at in all, where a worker serves many models, and the fewest per queue.
local LOOKED_IN_ALL, LEAST_LOOKED = 96, 4
-- A worker that empties itself for a job in quarantine is given this long; then another one may.
local EMPTYING_MS = 60000
local MOST_REFUSALS = 64                   -- fields kept with a job

-- Whether a live worker on a node that has not failed this job serves the model.
local function has_better(F, model, failed, now)
  local workers = redis.call('ZRANGEBYSCORE', serves_key(F, model), ms(now), '+inf', 'LIMIT', 0, 64)
  for _, worker in ipairs(workers) do
    local node = redis.call('HGET', worker_key(F, worker), 'node_key')
    if node and not string.find(failed, '|' .. node .. '|', 1, true) then return true end
  end
  return false
end

-- Notes why a worker leaves a job to others: "code|number|when".
local function note_refusal(F, id, worker, code, number, now)
  local job = job_key(F, id)
  if redis.call('HLEN', job) < MOST_REFUSALS then
    redis.call('HSET', job, 'no:' .. worker.node, string.format('%s|%.0f|%.0f', code, number, now))
  end
end

-- A job that has killed workers runs alone. Whether this worker may have it now; one that is busy empties itself for it.
local function may_quarantine(F, id, worker, now)
  if worker.busy == 0 then return true end
  local job = job_key(F, id)
  local h = redis.call('HMGET', job, 'alone_for', 'alone_at')
  if not h[1] or now - tonumber(h[2]) > EMPTYING_MS then
    redis.call('HSET', job, 'alone_for', worker.id, 'alone_at', ms(now))
    h[1] = worker.id
  end
  if h[1] == worker.id then worker.empties = true end
  return false
end

-- Why a job with flags is not for this worker: code, number; nil: it is.
local function misfit(F, model, id, flags, m, worker, now)
  local h = redis.call('HMGET', job_key(F, id), 'failed', 'requires', 'failed_at', 'context')
  local wanted = h[2] and h[2] ~= '' and cmsgpack.unpack(h[2])
  if wanted and not fits(wanted, worker.offer, worker.node) then
    return 'requires', math.max(0, (wanted.vram_mib or 0) - (worker.offer.vram_mib or 0))
  end
  local context = tonumber(h[4] or 0)
  if m.context > 0 and context > m.context and has_more_context(F, model, m.context) then return 'context', context - m.context end
  if h[1] and string.find(h[1], '|' .. worker.node_key .. '|', 1, true) and now - tonumber(h[3]) < FAILED_PATIENCE_MS
    and has_better(F, model, h[1], now) then
    return 'failed', 0
  end
  if string.find(flags, 'q', 1, true) and not may_quarantine(F, id, worker, now) then return 'quarantine', 0 end
  return nil
end

-- Jobs at the head of one queue that this worker may take, as the rule wants them.
local function read_heads(F, jobs, index, m, lane, worker, depth, now)
  local model = m.key
  for position, member in ipairs(redis.call('ZRANGE', queue_key(F, model), 0, depth - 1)) do
    local id, prompt, output, submitted, flags, affinity =
      string.match(member, '^([^|]+)|(%d+)|(%d+)|(%d+)|([a-z]*)|(%x*)$')
    local why, number
    if not id then                         -- not one of ours: it must not stop the queue
      redis.call('ZREM', queue_key(F, model), member)
      why = 'malformed'
    else
      prompt = tonumber(prompt)
      if m.context > 0 and prompt > m.context and has_more_context(F, model, m.context) then
        why, number = 'context', prompt - m.context
      elseif flags ~= '' and flags ~= 'b' then
        why, number = misfit(F, model, id, flags, m, worker, now)
      end
    end
    if not why then
      local cached = affinity ~= '' and lane.cached[affinity] or 0
      jobs[#jobs + 1] = {offer = index, position = position - 1, prompt = prompt, cached = math.min(cached, prompt - 1),
        output = tonumber(output), waited = math.max(0, now - tonumber(submitted)), id = id, member = member, model = model,
        batch = string.find(flags, 'b', 1, true) and true or false, alone = string.find(flags, 'q', 1, true) and true or false}
    elseif id and position == 1 then
      worker.refused[#worker.refused + 1] = {id, why, number}
    end
  end
end

local function read_lane(F, lane, worker, depth, now)
  local offers, jobs = {}, {}
  for i, raw in ipairs(lane.models) do
    local m = {key = raw[1], context = raw[6] or 0}
    local waiting = redis.call('ZCARD', queue_key(F, m.key))
    offers[i] = {load = raw[2], a = raw[3], b = raw[4], slow = raw[5] or 0, busy = lane.busy or 0, settled = lane.settled or INF,
      waiting = waiting, backlog = waiting, others = {}, key = m.key}
    if waiting > 0 then
      local own = redis.call('HGET', shares_key(F, m.key), worker.id)
      offers[i].others = read_classes(F, m.key, own and read_share(own))
      read_heads(F, jobs, i, m, lane, worker, depth, now)
    end
  end
  return offers, jobs
end
