-- claim: take the jobs that suit this worker best, or wait in line for the next one. Safe to repeat with the same nonce.
-- KEYS 1 fabric prefix
-- ARGV 1 worker 2 node 3 nonce of this call 4 lease ms 5 jobs looked at per queue 6 offers, msgpack:
--        {labels=[…], vram_mib=n, most=n, lanes=[{free=n, models=[[model key, load ms, a ms, b ms], …]}, …]}
--        a lane is one LLM server; free = jobs it could start now; most = jobs the worker could start in all.
--        All lanes are named, full ones too. A worker's claims must not overlap.
-- returns {'ok', [[id, fence, nonce, attempt, waited ms, ms until deadline or -1, blobs 0.., envelope], …]}
--       | {'unknown'}: the worker's advert has run out; advertise, then try again
-- Jobs in line are cheap to bell in the order of what a common one would cost.
local TYPICAL_PROMPT, TYPICAL_OUTPUT = 512, 128  -- tokens
-- A node that failed a job leaves it to the others; but whether those have what it requires is not known here, so
-- a job with requirements is not left to them for ever.
local FAILED_PATIENCE_MS = 30000

-- Whether a live worker on a node that has not failed this job serves the model.
local function has_better(F, model, failed, now)
  local workers = redis.call('ZRANGEBYSCORE', serves_key(F, model), ms(now), '+inf', 'LIMIT', 0, 64)
  for _, worker in ipairs(workers) do
    local node = redis.call('HGET', worker_key(F, worker), 'node_key')
    if node and not string.find(failed, '|' .. node .. '|', 1, true) then return true end
  end
  return false
end

-- Jobs at the head of one queue that this worker may take, as the rule wants them.
local function read_heads(F, jobs, index, model, offer, worker, depth, now)
  local heads = redis.call('ZRANGE', queue_key(F, model), 0, depth - 1, 'WITHSCORES')
  for i = 1, #heads, 2 do
    local id, prompt, output, submitted, flags = string.match(heads[i], '^([^|]+)|(%d+)|(%d+)|(%d+)|([a-z]*)$')
    local ok = id ~= nil
    if not ok then                         -- not one of ours: it must not stop the queue
      redis.call('ZREM', queue_key(F, model), heads[i])
    elseif flags ~= '' then
      local h = redis.call('HMGET', job_key(F, id), 'failed', 'requires', 'failed_at')
      local wanted = h[2] and h[2] ~= '' and cmsgpack.unpack(h[2])
      ok = not wanted or fits(wanted, offer, worker.node)
      local failed_here = h[1] and string.find(h[1], '|' .. worker.node_key .. '|', 1, true)
      if ok and failed_here and has_better(F, model, h[1], now) then
        ok = wanted and now - tonumber(h[3]) >= FAILED_PATIENCE_MS
      end
    end
    if ok then
      jobs[#jobs + 1] = {offer = index, rank = tonumber(heads[i + 1]), prompt = tonumber(prompt), output = tonumber(output),
        submitted = tonumber(submitted), id = id, member = heads[i], model = model}
    end
  end
end

-- Makes the job this worker's; returns its reply row, or nil when it turned out to be no one's to take.
local function take(F, job, worker, nonce, lease_ms, now)
  local key = job_key(F, job.id)
  redis.call('ZREM', queue_key(F, job.model), job.member)
  local h = redis.call('HMGET', key, 'state', 'env', 'stream', 'inbox', 'deadline', 'attempt', 'submitted', 'blobs')
  if h[1] ~= 'queued' then return nil end
  local left = -1
  if h[5] ~= '0' then
    left = tonumber(h[5]) - now
    if left <= 0 then end_job(F, job.id, 'expired', '', now) return nil end
  end
  local fence = string.format('%d', redis.call('HINCRBY', key, 'fence', 1))
  local attempt = tonumber(h[6]) + 1
  redis.call('HSET', key, 'state', 'running', 'nonce', nonce, 'worker', worker.id, 'node', worker.node,
    'node_key', worker.node_key, 'claimed', ms(now), 'attempt', attempt, 'seq', '0',
    'lease', lease_ms)
  redis.call('ZADD', F .. ':leases', ms(now + lease_ms), job.id)
  if h[3] == '1' then
    redis.call('XADD', events_key(F, job.id), '*', 't', 'start', 'f', fence, 'n', worker.node, 'w', worker.id)
    tell(F, h[4], 't', 'start', 'j', job.id, 'f', fence, 'n', worker.node, 'w', worker.id)
  end
  return {job.id, fence, nonce, attempt, ms(now - tonumber(h[7])), ms(left), tonumber(h[8]), h[2]}
end

-- What the worker's last claim took, if this is that call again: its reply was lost on the way.
local function repeated(F, seen, nonce, now)
  local ids = seen and string.match(seen, '^' .. nonce .. ' (.*)$')
  if not ids then return nil end
  local rows = {}
  for id in string.gmatch(ids, '[^ ]+') do
    local h = redis.call('HMGET', job_key(F, id), 'state', 'nonce', 'fence', 'attempt', 'submitted', 'deadline', 'blobs', 'env')
    if h[1] == 'running' and h[2] == nonce then
      local left = h[6] == '0' and -1 or math.max(0, tonumber(h[6]) - now)
      rows[#rows + 1] = {id, h[3], nonce, tonumber(h[4]), ms(now - tonumber(h[5])), ms(left), tonumber(h[7]), h[8]}
    end
  end
  return rows
end

-- Enters the worker in line for the models of each lane that has room, and takes it out for those of a full one.
local function park(F, worker, advert, lanes, spare, was_parked)
  local parked = false
  for i, lane in ipairs(lanes) do
    parked = parked or spare[i]
    for _, m in ipairs(lane.models) do
      local idle = idle_key(F, m[1])
      if spare[i] then
        redis.call('ZADD', idle, ms(m[2] + m[3] * TYPICAL_PROMPT + m[4] * TYPICAL_OUTPUT), worker.id)
        redis.call('PEXPIRE', idle, IDLE_TTL_MS)
      elseif was_parked then
        redis.call('ZREM', idle, worker.id)
        -- It may have been woken for this model and then taken another: pass the bell on.
        if redis.call('EXISTS', queue_key(F, m[1])) == 1 then ring(F, m[1]) end
      end
    end
  end
  if parked ~= was_parked then redis.call('HSET', advert, 'parked', parked and '1' or '0') end
end

local function claim_for(F, a, at)
  local worker, nonce = {id = a[at], node = a[at + 1]}, a[at + 2]
  local lease_ms, depth = tonumber(a[at + 3]), tonumber(a[at + 4])
  local advert = worker_key(F, worker.id)
  local known = redis.call('HMGET', advert, 'node', 'last_claim', 'parked', 'node_key')
  if not known[1] then return {'unknown'} end
  worker.node_key = known[4] or ''
  local now = now_ms()
  local again = repeated(F, known[2], nonce, now)
  if again then return {'ok', again} end
  promote(F, now)

  local offer = cmsgpack.unpack(a[at + 5])
  local rows, ids, spare, most = {}, {nonce}, {}, offer.most
  for l, lane in ipairs(offer.lanes) do
    local free, offers, jobs = math.min(lane.free, most), {}, {}
    for i, m in ipairs(lane.models) do
      offers[i] = {load = m[2], a = m[3], b = m[4]}
      if free > 0 then read_heads(F, jobs, i, m[1], offer, worker, math.max(depth, free), now) end
    end
    while free > 0 do
      local pick = choose(offers, jobs, now)
      if not pick then break end
      jobs[pick].taken = true
      local row = take(F, jobs[pick], worker, nonce, lease_ms, now)
      if row then
        rows[#rows + 1], ids[#ids + 1], free, most = row, row[1], free - 1, most - 1
      end
    end
    spare[l] = free > 0
  end
  if #rows > 0 then redis.call('HSET', advert, 'last_claim', table.concat(ids, ' ')) end
  -- In the same call, so that no bell falls between looking and waiting.
  for l in ipairs(spare) do spare[l] = spare[l] and most > 0 end  -- a later lane may have used up the rest
  park(F, worker, advert, offer.lanes, spare, known[3] == '1')
  return {'ok', rows}
end

local function claim(keys, a) return claim_for(keys[1], a, 1) end
-- allow-oom: running what was accepted is what frees the memory.
verb('claim', claim, {'allow-oom'})
