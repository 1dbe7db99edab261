-- Hedging: when a job is later than almost all before it, a second copy may run on another node. The first sign of an
-- answer wins: of a streamed job the first piece, of any other the answer. The other copy is told to stop.
local HEDGE_QUANTILE = 0.95
local HEDGE_MIN_SEEN = 20                  -- runs before the quantile is believed
local HEDGE_UNKNOWN_RATIO = 3              -- real to predicted time, until then
local HEDGE_MIN_MS = 250                   -- nobody notices less
local HEDGE_PERCENT = 5                    -- extra work that may be done, of the work of the last runs
local LATE_STEPS, LATE_FURTHEST = 8, 80    -- bins per doubling of real to predicted time; most bins each way
local LATE_KEPT = 1024                     -- runs, then all that is counted is halved

-- The bin for a run, by how its time compares with what was predicted; nil: not known.
local function late_bin(predicted, run)
  if predicted <= 0 or run <= 0 then return nil end
  local bin = math.floor(LATE_STEPS * math.log(run / predicted) / math.log(2))
  return math.max(-LATE_FURTHEST, math.min(LATE_FURTHEST, bin))
end

-- Old runs count ever less: halves the bins, and the work done for the first and the second copies.
local function forget_runs(F, model)
  local late, flat = late_key(F, model), redis.call('HGETALL', late_key(F, model))
  for i = 1, #flat, 2 do
    local half = math.floor(tonumber(flat[i + 1]) / 2)
    if half > 0 then redis.call('HSET', late, flat[i], half) else redis.call('HDEL', late, flat[i]) end
  end
  for _, key in ipairs({late, learned_key(F, model)}) do redis.call('PEXPIRE', key, LEARNED_TTL_MS) end
  local h = redis.call('HMGET', learned_key(F, model), 'work', 'extra')
  redis.call('HSET', learned_key(F, model), 'work', ms(tonumber(h[1] or 0) / 2), 'extra', ms(tonumber(h[2] or 0) / 2))
end

-- Real to predicted time that all but the latest runs of a model keep to.
local function late_ratio(F, model)
  local flat, bins, n = redis.call('HGETALL', late_key(F, model)), {}, 0
  for i = 1, #flat, 2 do
    bins[#bins + 1] = {tonumber(flat[i]), tonumber(flat[i + 1])}
    n = n + bins[#bins][2]
  end
  if n < HEDGE_MIN_SEEN then return HEDGE_UNKNOWN_RATIO end
  table.sort(bins, function(x, y) return x[1] < y[1] end)
  local seen = 0
  for _, bin in ipairs(bins) do
    seen = seen + bin[2]
    if seen >= HEDGE_QUANTILE * n then return 2 ^ ((bin[1] + 1) / LATE_STEPS) end
  end
  return HEDGE_UNKNOWN_RATIO
end

-- Whether so much more work may be done on a model for second copies; a first one always may.
local function may_hedge(F, model)
  local percent = tonumber(redis.call('HGET', F .. ':policy', 'hedge_percent') or HEDGE_PERCENT)
  local h = redis.call('HMGET', learned_key(F, model), 'work', 'extra')
  return percent > 0 and tonumber(h[2] or 0) <= percent / 100 * tonumber(h[1] or 0)
end

-- Says when a job that is now running counts as late; wakes an idle worker, so that it knows when to look.
local function arm_hedge(F, id, model, predicted, now)
  local due = now + math.max(HEDGE_MIN_MS, predicted * late_ratio(F, model))
  redis.call('ZADD', F .. ':hedges', ms(due), id)
  ring(F, model)
end

-- The second copy becomes the first one: its fence is the one that counts from now on.
local function promote_hedge(F, id)
  local job = job_key(F, id)
  local h = redis.call('HMGET', job, 'hfence', 'hnonce', 'hworker', 'hnode', 'hnode_key', 'hclaimed', 'stream', 'inbox')
  local lease = redis.call('ZSCORE', F .. ':leases', id .. '|h')
  forget_hedge(F, id)
  redis.call('HSET', job, 'fence', h[1], 'nonce', h[2], 'worker', h[3], 'node', h[4], 'node_key', h[5], 'claimed', h[6])
  if lease then redis.call('ZADD', F .. ':leases', lease, id) end
  if h[7] == '1' then say_start(F, id, h[8], h[1], h[4], h[3]) end
end

-- Whose attempt fence and nonce name: 'first', 'second', or nil when it is nobody's any more. A second copy whose
-- answer has come becomes the first one here, and the first one is told to stop.
local function win(F, id, state, fence, nonce, worker, hfence, hnonce, my_fence, my_nonce)
  if held(state, fence, nonce, my_fence, my_nonce) then return true end
  if state ~= 'running' or not hfence or hfence ~= my_fence or hnonce ~= my_nonce then return false end
  promote_hedge(F, id)
  redis.call('HINCRBY', F .. ':stats', 'hedges_won', 1)
  tell(F, worker, 't', 'cancel', 'j', id, 'f', fence)
  return true
end

-- Takes the copy away that fence and nonce name, because it failed or was handed back; returns whether the job runs on
-- in the other copy.
local function runs_on(F, id, state, fence, nonce, hfence, hnonce, my_fence, my_nonce)
  if state ~= 'running' or not hfence then return false end
  if hfence == my_fence and hnonce == my_nonce then forget_hedge(F, id) return true end
  if fence == my_fence and nonce == my_nonce then promote_hedge(F, id) return true end
  return false
end

-- Starts a second copy of a job that is late elsewhere, if there is one for this lane and work to spare.
-- returns its reply row, or nil and ms until the next one is late
local function take_hedge(F, lane, worker, nonce, lease_ms, now)
  local rows = redis.call('ZRANGE', F .. ':hedges', 0, 7, 'WITHSCORES')
  for i = 1, #rows, 2 do
    local id, due = rows[i], tonumber(rows[i + 1])
    if due > now then return nil, due - now end
    local key = job_key(F, id)
    local h = redis.call('HMGET', key, 'state', 'queue', 'node_key', 'failed', 'requires', 'fair', 'seq', 'task', 'attempt',
      'submitted', 'deadline', 'blobs', 'hfence', 'predicted', 'member')
    local left = h[11] and h[11] ~= '0' and tonumber(h[11]) - now or -1
    if h[1] ~= 'running' or h[13] or (h[7] or '0') ~= '0' or (h[11] ~= '0' and left <= 0) then
      redis.call('ZREM', F .. ':hedges', id)  -- over, hedged already, its answer has begun, or its deadline has passed
    else
      local serves = false
      for _, m in ipairs(lane.models) do serves = serves or m[1] == h[2] end
      local wanted = h[5] and h[5] ~= '' and cmsgpack.unpack(h[5])
      local is_ours = h[3] == worker.node_key or string.find(h[4] or '', '|' .. worker.node_key .. '|', 1, true)
      if serves and not is_ours and may_hedge(F, h[2]) and (not wanted or fits(wanted, worker.offer, worker.node)) then
        local fence = string.format('%d', redis.call('HINCRBY', key, 'top', 1))
        redis.call('HSET', key, 'hfence', fence, 'hnonce', nonce, 'hworker', worker.id, 'hnode', worker.node,
          'hnode_key', worker.node_key, 'hclaimed', ms(now))
        redis.call('ZREM', F .. ':hedges', id)
        redis.call('ZADD', F .. ':leases', ms(now + lease_ms), id .. '|h')
        redis.call('HINCRBYFLOAT', learned_key(F, h[2]), 'extra', ms(read_fair(h[6]).cost))
        redis.call('HINCRBY', F .. ':stats', 'hedges', 1)
        redis.call('HINCRBY', F .. ':stats', 'second_copies', 1)
        return {id, fence, nonce, tonumber(h[9]), ms(now - tonumber(h[10])), ms(left), tonumber(h[12] or 0),
          envelope_of(F, id), h[14] or '0', '0', 1, 0, h[8] or '', string.match(h[15] or '', '|(%x*)$') or ''}
      end
    end
  end
  return nil, nil
end
