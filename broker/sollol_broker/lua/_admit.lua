-- Admission: what is refused before it is taken in, and when it may be tried again.
-- F:policy fields: max_queue, max_bytes (of the fabric), max_queue:MODEL, app:APP = msgpack
-- {weight, concurrency, rpm, tpm, max_queue}, hedge_from (priority from which late jobs are hedged; 11 = none), hedge_percent
-- (see _hedge.lua)
local MEMORY_LOOK_MS = 250                 -- INFO costs 20 us: look this often, not at each job
local MEMORY_SHARE = 0.85                  -- of maxmemory; the rest is for answers of the jobs already accepted
local HEDGE_FROM = 9
local MINUTE_MS = 60000
local LEAST_RETRY_MS = 100
local RUNS_TO_TRUST = 5                    -- before that, a predicted wait refuses nobody

local function memory_is_full(F, now)
  local limits = F .. ':limits'
  local h = redis.call('HMGET', limits, 'looked', 'full')
  if h[1] and math.abs(now - tonumber(h[1])) < MEMORY_LOOK_MS then return h[2] == '1' end
  local info = redis.pcall('INFO', 'memory')
  local full = false
  if type(info) == 'string' then           -- a role without INFO goes on without this look
    local used = tonumber(string.match(info, 'used_memory:(%d+)') or 0)
    local most = tonumber(string.match(info, 'maxmemory:(%d+)') or 0)
    full = most > 0 and used > most * MEMORY_SHARE
  end
  redis.call('HSET', limits, 'looked', ms(now), 'full', full and '1' or '0')
  return full
end

local NO_POLICY = {weight = 1, hedge_from = HEDGE_FROM}

local function read_policy(F, model, app)
  local h = redis.call('HMGET', F .. ':policy', 'max_queue', 'max_bytes', 'max_queue:' .. model, 'app:' .. app, 'hedge_from')
  if not (h[1] or h[2] or h[3] or h[4] or h[5]) then return NO_POLICY end
  local ok, quota = pcall(cmsgpack.unpack, h[4] or '')
  if not h[4] or not ok or type(quota) ~= 'table' then quota = {} end
  return {any = true, quota = h[4] and true or false, max_queue = tonumber(h[1]), max_bytes = tonumber(h[2]), max_queue_model = tonumber(h[3]),
    hedge_from = tonumber(h[5]) or HEDGE_FROM, weight = math.max(0.01, tonumber(quota.weight) or 1),
    concurrency = tonumber(quota.concurrency), rpm = tonumber(quota.rpm), tpm = tonumber(quota.tpm),
    max_queue_app = tonumber(quota.max_queue)}
end

-- When a rate allows the next one (GCRA): at a steady pace, with one minute's worth in a burst.
-- returns the new time tag, or nil and ms to wait
local function rate_after(tag_at, now, per_minute, amount)
  local start = math.max(now, tag_at)
  if start - now > MINUTE_MS - math.min(MINUTE_MS, MINUTE_MS / per_minute) + 0.001 then
    return nil, start - now - MINUTE_MS + MINUTE_MS / per_minute
  end
  return start + amount * MINUTE_MS / per_minute
end

-- What is left of a rate: limit, remaining, ms until it is whole.
local function left_of_rate(per_minute, tag_at, now)
  local used = math.min(MINUTE_MS, math.max(0, tag_at - now))
  return per_minute, per_minute * (MINUTE_MS - used) / MINUTE_MS, used
end

-- What is left of an application's quota: limit, remaining, ms until it is whole, of requests and then of tokens; limit -1 =
-- none. Of several limits of requests the one that is nearest; {} = it has none at all.
local function left_of_quota(F, model, app, policy, now)
  if not (policy.concurrency or policy.max_queue_app or policy.rpm or policy.tpm) then return {} end
  local h = redis.call('HMGET', usage_key(F, app), 'n', 'requests', 'tokens')
  local requests, tokens = {-1, 0, 0}, {-1, 0, 0}
  if policy.rpm then requests = {left_of_rate(policy.rpm, tonumber(h[2] or 0), now)} end
  if policy.tpm then tokens = {left_of_rate(policy.tpm, tonumber(h[3] or 0), now)} end
  local counts = {{policy.concurrency, tonumber(h[1] or 0)},
    {policy.max_queue_app, tonumber(policy.max_queue_app and redis.call('HGET', fair_key(F, model), 'n:' .. app) or 0)}}
  for i = 1, 2 do
    local limit = counts[i][1]
    if limit and (requests[1] < 0 or limit - counts[i][2] < requests[2]) then requests = {limit, limit - counts[i][2], 0} end
  end
  local told = {}
  for _, n in ipairs({requests[1], requests[2], requests[3], tokens[1], tokens[2], tokens[3]}) do
    told[#told + 1] = string.format('%.0f', math.floor(math.max(-1, n) + 1e-6))
  end
  return told
end

-- Jobs that wait in the whole fabric: all that came, less those that run (a second copy has a lease of its own) or ended.
local function waiting_in_all(F)
  local h = redis.call('HMGET', F .. ':stats', 'submitted', 'second_copies', 'done', 'failed', 'cancelled', 'expired', 'dead')
  local n = tonumber(h[1] or 0) + tonumber(h[2] or 0) - redis.call('ZCARD', F .. ':leases')
  for i = 3, #h do n = n - tonumber(h[i] or 0) end
  return n
end

-- Why this job is refused now: reason, ms after which to try again; nil: it may come in.
-- ask  {bytes=n, tokens=n, deadline=ms or 0, runs=n that the predictions rest on, rank=function that gives its rank}
local function refusal(F, model, app, policy, ask, ref, now)
  if not policy.any and ask.deadline == 0 then return nil end
  local waiting = redis.call('ZCARD', queue_key(F, model))
  local ahead = math.max(0, tonumber(redis.call('HGET', fair_key(F, model), 'q') or 0)) / ref.speed
  local per_job = waiting > 0 and ahead / waiting or 0
  if policy.max_queue_model and waiting >= policy.max_queue_model then
    return 'model', per_job * (waiting - policy.max_queue_model + 1)
  end
  if policy.max_queue and waiting_in_all(F) >= policy.max_queue then return 'fabric', per_job end
  if policy.max_bytes and tonumber(redis.call('HGET', F .. ':stats', 'bytes') or 0) + ask.bytes > policy.max_bytes then
    return 'bytes', per_job
  end
  if ask.deadline > 0 and ahead > ask.deadline and ask.runs >= RUNS_TO_TRUST then
    local before = per_job * redis.call('ZCOUNT', queue_key(F, model), '-inf', ask.rank())
    if before > ask.deadline then return 'deadline', before - ask.deadline end
  end
  if not (policy.concurrency or policy.max_queue_app or policy.rpm or policy.tpm) then return nil end

  local key = usage_key(F, app)
  local h = redis.call('HMGET', key, 'n', 'requests', 'tokens')
  local n = tonumber(h[1] or 0)
  if policy.concurrency and n >= policy.concurrency then return 'concurrency', per_job end
  if policy.max_queue_app then
    local mine = tonumber(redis.call('HGET', fair_key(F, model), 'n:' .. app) or 0)
    if mine >= policy.max_queue_app then return 'app_queue', per_job end
  end
  local requests, tokens_tag, wait
  if policy.rpm then
    requests, wait = rate_after(tonumber(h[2] or 0), now, policy.rpm, 1)
    if not requests then return 'requests', wait end
  end
  if policy.tpm then
    tokens_tag, wait = rate_after(tonumber(h[3] or 0), now, policy.tpm, ask.tokens)
    if not tokens_tag then return 'tokens', wait end
  end
  if requests then redis.call('HSET', key, 'requests', ms(requests)) end
  if tokens_tag then redis.call('HSET', key, 'tokens', ms(tokens_tag)) end
  return nil
end
