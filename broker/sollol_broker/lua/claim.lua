-- claim: take the jobs that suit this worker best, or wait in line for the next one. Safe to repeat with the same nonce.
-- KEYS 1 fabric prefix
-- ARGV 1 worker 2 node 3 nonce of this call 4 lease ms 5 jobs looked at in all 6 offers, msgpack:
--        {labels=[…], vram_mib=n, most=n, price=x, lanes=[{free=n, busy=n, settled=ms, cached={affinity: tokens},
--         models=[[model key, load ms, a ms, b ms, slowdown, context tokens, price], …]}, …]}
--        a lane is one LLM server; free = jobs it could start now; most = jobs the worker could start in all.
--        All lanes are named, full ones too. A worker's claims must not overlap. price = the factors that the costs
--        contain, of a worker by its operator's wish, of a model for its failures; what is predicted is without them.
-- returns {'ok', [[id, fence, nonce, attempt, waited ms, ms until deadline or -1, blobs 0.., envelope, predicted ms,
--          reference ms, hedge 0|1, alone 0|1, task, affinity], …], ms after which to look again or -1}
--       | {'unknown'}: the worker's advert has run out; advertise, then try again
-- Makes the job this worker's; returns its reply row, or nil when it turned out to be no one's to take.
local function take(F, job, worker, price, nonce, lease_ms, why, now)
  local key, bid = job_key(F, job.id), job.bid
  redis.call('ZREM', queue_key(F, job.model), job.member)
  local h = redis.call('HMGET', key, 'state', 'blobs', 'stream', 'inbox', 'deadline', 'attempt', 'submitted', 'task', 'fair', 'hedge')
  if h[1] ~= 'queued' then return nil end
  local left = -1
  if h[5] ~= '0' then
    left = tonumber(h[5]) - now
    if left <= 0 then end_job(F, job.id, 'expired', '', now) return nil end
  end
  local fence, own = string.format('%d', redis.call('HINCRBY', key, 'top', 1)), bid.own / price
  local attempt = tonumber(h[6] or 0) + 1
  redis.call('HSET', key, 'state', 'running', 'fence', fence, 'nonce', nonce, 'worker', worker.id, 'node', worker.node,
    'node_key', worker.node_key, 'claimed', ms(now), 'attempt', attempt, 'seq', '0',
    'lease', lease_ms, 'predicted', ms(own), 'why', why)
  redis.call('ZADD', F .. ':leases', ms(now + lease_ms), job.id)
  leave_line(F, job.model, read_fair(h[9]))
  if h[3] == '1' then say_start(F, job.id, h[4], fence, worker.node, worker.id) end
  if h[10] == '1' then arm_hedge(F, job.id, job.model, own, now) end
  return {job.id, fence, nonce, attempt, ms(now - tonumber(h[7])), ms(left), tonumber(h[2] or 0), envelope_of(F, job.id),
    ms(own), ms(bid.reference), 0, job.alone and 1 or 0, h[8] or '', job.affinity}
end

-- What the worker's last claim took, if this is that call again: its reply was lost on the way.
local function repeated(F, seen, nonce, now)
  local ids = seen and string.match(seen, '^' .. nonce .. ' (.*)$')
  if not ids then return nil end
  local rows = {}
  for id in string.gmatch(ids, '[^ ]+') do
    local h = redis.call('HMGET', job_key(F, id), 'state', 'nonce', 'fence', 'attempt', 'submitted', 'deadline', 'blobs', 'task',
      'predicted', 'hnonce', 'hfence', 'member')
    local hedged = h[10] == nonce
    if h[1] == 'running' and (h[2] == nonce or hedged) then
      local left = h[6] == '0' and -1 or math.max(0, tonumber(h[6]) - now)
      local alone = h[12] and string.match(h[12], '|[a-z]*q[a-z]*|%x*$') and 1 or 0
      rows[#rows + 1] = {id, hedged and h[11] or h[3], nonce, tonumber(h[4]), ms(now - tonumber(h[5])), ms(left), tonumber(h[7] or 0),
        envelope_of(F, id), h[9] or '0', '0', hedged and 1 or 0, alone, h[8] or '', string.match(h[12] or '', '|(%x*)$') or ''}
    end
  end
  return rows
end

-- Enters the worker in line for the models of a lane that has room: as idle where nothing waits, else armed for the
-- backlog at which it would help. A bell that it declines is passed on.
local function stand_by(F, worker, lane, needed, was_parked)
  for _, m in ipairs(lane.models) do
    local model, idle, armed = m[1], idle_key(F, m[1]), armed_key(F, m[1])
    if redis.call('EXISTS', queue_key(F, model)) == 0 then
      -- What one more job costs: its own time in company, and what it takes from those beside it.
      local crowd = 1 + 2 * (m[5] or 0) * (lane.busy or 0)
      redis.call('ZADD', idle, ms(m[2] + crowd * (m[3] * TYPICAL_PROMPT + m[4] * TYPICAL_OUTPUT)), worker.id)
      redis.call('PEXPIRE', idle, IDLE_TTL_MS)
      redis.call('ZREM', armed, worker.id)
    else
      local was_idle = redis.call('ZREM', idle, worker.id) == 1
      local was_armed = redis.call('ZREM', armed, worker.id) == 1
      if was_parked and not (was_idle or was_armed) then ring(F, model) end
      redis.call('ZADD', armed, math.min(needed[model] or INF, 1e15), worker.id)
      redis.call('PEXPIRE', armed, IDLE_TTL_MS)
    end
  end
end

local function step_out(F, worker, lane)
  for _, m in ipairs(lane.models) do
    redis.call('ZREM', idle_key(F, m[1]), worker.id)
    redis.call('ZREM', armed_key(F, m[1]), worker.id)
    -- It may have been woken for this model and then taken another: pass the bell on.
    if redis.call('EXISTS', queue_key(F, m[1])) == 1 then ring(F, m[1]) end
  end
end

-- Takes jobs for one lane while the rule finds any; returns slots left, the jobs seen, ms after which to look again, and
-- whether one of them was gone. takes_all: not only those that go first.
local function pick_jobs(F, lane, worker, claim, free, is_wary, takes_all, now)
  local offers, jobs = read_lane(F, lane, worker, free, math.max(claim.depth, free), is_wary, now)
  local again, was_gone = INF, false
  if worker.empties then free = 0 end
  while free > 0 do
    local pick, bid, _, wait = choose(offers, jobs, WEIGHTS)
    again = wait or INF
    if not pick or not (takes_all or is_first(offers, jobs[pick], WEIGHTS)) then break end
    local job, offer = jobs[pick], offers[jobs[pick].offer]
    job.taken = true
    local why = string.format('%.0f|%.0f|%.3f|%.0f|%.0f|%.0f|%.0f', bid.own, bid.reference, math.min(bid.ratio, 1e6), bid.capacity,
      offer.backlog, job.position, #jobs)
    if not (job.alone and worker.busy > 0) then
      local row = take(F, job, worker, (worker.offer.price or 1) * offer.price, claim.nonce, claim.lease_ms, why, now)
      if row then
        claim.rows[#claim.rows + 1] = row
        free, claim.most, worker.busy = free - 1, claim.most - 1, worker.busy + 1
        lane.busy = (lane.busy or 0) + 1
        for _, each in ipairs(offers) do each.busy = lane.busy end
        if job.alone then free, claim.most, worker.empties = 0, 0, true end
      else
        was_gone = true
      end
      offer.waiting, offer.backlog = offer.waiting - 1, offer.backlog - 1
    end
  end
  return free, jobs, again, was_gone
end

-- Fills one lane; returns slots left, by model the backlog at which it would take a job, and ms after which to look again.
local function fill(F, lane, worker, claim, now)
  local free, jobs, again, was_gone = pick_jobs(F, lane, worker, claim, math.min(lane.free, claim.most), false, true, now)
  if was_gone and free > 0 then free, jobs, again = pick_jobs(F, lane, worker, claim, free, true, true, now) end
  local needed = {}
  if free > 0 and claim.most > 0 then
    local row, wait = take_hedge(F, lane, worker, claim.nonce, claim.lease_ms, now)
    if row then
      claim.rows[#claim.rows + 1] = row
      free, claim.most, worker.busy = free - 1, claim.most - 1, worker.busy + 1
    end
    again = math.min(again, row and 0 or wait or INF)
    for _, job in ipairs(jobs) do
      if not job.taken and job.bid then
        needed[job.model] = math.min(needed[job.model] or INF, job.bid.needed)
        if job.position == 0 then note_refusal(F, job.id, worker, 'cheaper', job.bid.own - job.bid.reference, now) end
      end
    end
  end
  return free, needed, again
end

-- Where lanes share their worker's slots, the first would take them all: it is another one with each claim, and what goes
-- first at any of them is taken before the rest. Returns how many lanes come after all others.
local function in_turn(F, lanes, worker, claim, now)
  local free, first = 0, string.byte(claim.nonce) % #lanes
  for _, lane in ipairs(lanes) do free = free + lane.free end
  if #lanes == 1 or free <= claim.most then return 0 end
  for i = 1, #lanes do
    local lane, before = lanes[(first + i - 1) % #lanes + 1], #claim.rows
    if lane.free > 0 and claim.most > 0 then
      pick_jobs(F, lane, worker, claim, math.min(lane.free, claim.most), false, false, now)
      lane.free = lane.free - (#claim.rows - before)
    end
  end
  return first
end

local function claim_for(F, a, at)
  local worker, claim = {id = a[at], node = a[at + 1], refused = {}}, {nonce = a[at + 2], lease_ms = tonumber(a[at + 3]), rows = {}}
  local advert = worker_key(F, worker.id)
  local known = redis.call('HMGET', advert, 'node', 'last_claim', 'parked', 'node_key', 'cordoned', 'stretch')
  if not known[1] then return {'unknown'} end
  worker.node_key, worker.stretch, worker.next_stretch = known[4] or '', tonumber(known[6] or 0), 0
  local now = now_ms()
  local again = repeated(F, known[2], claim.nonce, now)
  if again then return {'ok', again, '-1'} end
  promote(F, now)

  local offer, was_parked, models = cmsgpack.unpack(a[at + 5]), known[3] == '1', 0
  worker.offer, worker.busy, claim.most = offer, 0, known[5] == '1' and 0 or offer.most
  for _, lane in ipairs(offer.lanes) do
    worker.busy, models = worker.busy + (lane.busy or 0), models + #lane.models
    lane.cached = lane.cached or {}
  end
  claim.depth = math.max(LEAST_LOOKED, math.floor(tonumber(a[at + 4]) / math.max(1, models)))
  local spare, needs, look = {}, {}, INF
  local first = in_turn(F, offer.lanes, worker, claim, now)
  for i = 1, #offer.lanes do
    local l = (first + i - 1) % #offer.lanes + 1
    local lane, free = offer.lanes[l], 0
    if lane.free > 0 and claim.most > 0 then
      local wait
      free, needs[l], wait = fill(F, lane, worker, claim, now)
      if free > 0 then look = math.min(look, wait) end
    end
    spare[l] = free > 0
  end
  if #claim.rows > 0 then
    local ids = {claim.nonce}
    for _, row in ipairs(claim.rows) do ids[#ids + 1] = row[1] end
    redis.call('HSET', advert, 'last_claim', table.concat(ids, ' '))
  end
  -- In the same call, so that no bell falls between looking and waiting.
  local parked = false
  for l, lane in ipairs(offer.lanes) do
    if spare[l] and claim.most > 0 then    -- a later lane may have used up the rest
      parked = true
      stand_by(F, worker, lane, needs[l], was_parked)
    elseif was_parked then
      step_out(F, worker, lane)
    end
  end
  if parked ~= was_parked then redis.call('HSET', advert, 'parked', parked and '1' or '0') end
  if worker.next_stretch ~= worker.stretch then redis.call('HSET', advert, 'stretch', worker.next_stretch) end
  if parked then
    for _, each in ipairs(worker.refused) do note_refusal(F, each[1], worker, each[2], each[3] or 0, now) end
  end
  return {'ok', claim.rows, look < INF and ms(math.max(1, look)) or '-1'}
end

local function claim(keys, a) return claim_for(keys[1], a, 1) end
-- allow-oom: running what was accepted is what frees the memory.
verb('claim', claim, {'allow-oom'})
