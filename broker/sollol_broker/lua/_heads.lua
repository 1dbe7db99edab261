-- What a worker sees of the queues it serves: the jobs at their heads that fit it, priced for the rule.
-- A node that failed a job leaves it to the others; but whether those can take it is not known here, so not for ever.
local FAILED_PATIENCE_MS = 30000
-- So long a job waits for a node that it prefers and that lives; not at all once it has failed somewhere.
local PREFER_PATIENCE_MS = 10000
-- A worker that serves many models looks at as few jobs of each: replayed with six models, the means are the same with 4
-- as with 32.
local LEAST_LOOKED = 2
-- Jobs at the head of a queue that a worker looks at in search of some that fit.
local FURTHEST, PAGE = 128, 32
-- A worker that empties itself for a job in quarantine is given this long; then another one may.
local EMPTYING_MS = 60000
local MOST_REFUSALS = 64                   -- fields kept with a job

-- How many of the nodes in a list "|node key|node key|" serve the model now.
local function serving(F, model, nodes, now)
  local n = 0
  for node in string.gmatch(nodes, '[^|]+') do
    if tonumber(redis.call('ZSCORE', hosts_key(F, model), node) or 0) > now then n = n + 1 end
  end
  return n
end

-- Whether a node that has not failed this job serves the model.
local function has_better(F, model, failed, now)
  return redis.call('ZCOUNT', hosts_key(F, model), ms(now), '+inf') > serving(F, model, failed, now)
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
  local h = redis.call('HMGET', job_key(F, id), 'failed', 'requires', 'failed_at', 'context', 'prefer', 'submitted')
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
  if h[5] and not h[1] and not string.find(h[5], '|' .. worker.node_key .. '|', 1, true) and now - tonumber(h[6]) < PREFER_PATIENCE_MS
    and serving(F, model, h[5], now) > 0 then
    return 'preferred', now - tonumber(h[6])
  end
  if string.find(flags, 'q', 1, true) and not may_quarantine(F, id, worker, now) then return 'quarantine', 0 end
  return nil
end

-- A waiting job as the rule wants it, from its member; nil: not one of ours. And its flags.
local function read_member(member)
  local id, prompt, output, submitted, flags, affinity =
    string.match(member, '^([^|]+)|(%d+)|(%d+)|(%d+)|([a-z]*)|(%x*)$')
  if not id then return nil end
  return {id = id, member = member, prompt = tonumber(prompt), output = tonumber(output), submitted = tonumber(submitted),
    affinity = affinity, batch = false, alone = false, bound = false, offer = 0, model = '', position = 0, waited = 0, cached = 0, behind = 0,
    bid = false}, flags
end

-- Adds the jobs of one stretch of a queue that this worker may take: it ends after `depth` of them, or FURTHEST in all.
-- returns how many, and whether the queue goes on behind a stretch that has none
local function read_stretch(F, jobs, index, m, lane, worker, first, depth, now)
  local model, at, found, size, is_full, lead = m.key, first, 0, depth, true, nil
  repeat
    local members = redis.call('ZRANGE', queue_key(F, model), at, at + size - 1, 'WITHSCORES')
    local count = #members / 2
    for i = 1, count do
      local member, rank = members[2 * i - 1], tonumber(members[2 * i])
      local job, flags = read_member(member)
      local why, number
      if not job then                      -- it must not stop the queue
        redis.call('ZREM', queue_key(F, model), member)
        why = 'malformed'
      elseif m.context > 0 and job.prompt > m.context and has_more_context(F, model, m.context) then
        why, number = 'context', job.prompt - m.context
      elseif flags ~= '' then
        job.batch, job.alone = string.find(flags, 'b', 1, true) ~= nil, string.find(flags, 'q', 1, true) ~= nil
        job.bound = string.find(flags, '[pqrx]') ~= nil
        if flags ~= 'b' then why, number = misfit(F, model, job.id, flags, m, worker, now) end
      end
      if not why then
        job.offer, job.model, job.position, job.waited = index, model, at + i - 1, math.max(0, now - job.submitted)
        job.cached = job.affinity ~= '' and math.min(lane.cached[job.affinity] or 0, job.prompt - 1) or 0
        lead = lead or rank
        job.behind = rank - lead
        jobs[#jobs + 1], found = job, found + 1
        if found == depth then break end
      elseif job and at + i == 1 then
        worker.refused[#worker.refused + 1] = {job.id, why, number}
      end
    end
    at, is_full, size = at + count, count == size, PAGE
  until not is_full or found == depth or at - first >= FURTHEST
  return found, found == 0 and at - first >= FURTHEST
end

-- Jobs at the head of one queue that this worker may take. Where there are none, it looks at another stretch behind
-- them, each time the next one, so that no job waits for ever behind those that are only for others.
local function read_heads(F, jobs, index, m, lane, worker, depth, now)
  local found, goes_on = read_stretch(F, jobs, index, m, lane, worker, 0, depth, now)
  if goes_on and worker.stretch > 0 then
    found, goes_on = read_stretch(F, jobs, index, m, lane, worker, worker.stretch * FURTHEST, depth, now)
    if found > 0 then worker.next_stretch = worker.stretch end
  end
  if goes_on then worker.next_stretch = math.max(worker.next_stretch, worker.stretch + 1) end
end

-- The classes that could be better than this worker for some job.
local function rivals(classes, offer)
  local slow, found = 1 + offer.slow * offer.busy, {}
  for _, each in ipairs(classes) do
    if each.load < offer.load or each.a < slow * offer.a or each.b < slow * offer.b then found[#found + 1] = each end
  end
  return found
end

-- is_wary: some jobs at the heads are known to be nobody's to take.
local function read_lane(F, lane, worker, free, depth, is_wary, now)
  local offers, jobs = {}, {}
  for i, raw in ipairs(lane.models) do
    local m = {key = raw[1], context = raw[6] or 0}
    local waiting = redis.call('ZCARD', queue_key(F, m.key))
    local offer = {load = raw[2], a = raw[3], b = raw[4], slow = raw[5] or 0, busy = lane.busy or 0, settled = lane.settled or INF,
      waiting = waiting, backlog = waiting, others = {}, key = m.key, price = raw[7] or 1}
    offers[i] = offer
    if waiting > 0 then
      local own = redis.call('HGET', shares_key(F, m.key), worker.id)
      offer.others = rivals(read_classes(F, m.key, own and read_share(own)), offer)
      -- Where nobody can be better and nothing is cached, all jobs have the same ratio: the first in line is the best.
      local before, enough = #jobs, math.min(free, waiting)
      if not is_wary and #offer.others == 0 and offer.load == 0 and not next(lane.cached) then
        read_heads(F, jobs, i, m, lane, worker, enough, now)
      end
      if #jobs - before < enough then
        for j = #jobs, before + 1, -1 do jobs[j] = nil end
        read_heads(F, jobs, i, m, lane, worker, depth, now)
      end
    end
  end
  return offers, jobs
end
