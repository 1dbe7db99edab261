-- F:fair:MODEL, the fair order of one queue: v (virtual time), w (sum of weights of applications with unfinished jobs),
-- q (predicted reference ms in line), and for each such application f:APP (finish tags by level, |
-- between them; kept while one lies ahead of v), n:APP (unfinished jobs), w:APP.
-- It vanishes with the last unfinished job: a busy period is over, and nobody has credit or debt any more.
-- A job's field `fair` is "cost|start|weight|bytes|counted 0 or 1|level|app key"; bytes and counted say what admission has
-- entered into its own books for the job.
local function read_fair(text)
  local cost, start, weight, bytes, counted, level, app = string.match(text or '', '^([^|]+)|([^|]+)|([^|]+)|([^|]+)|(%d)|(%d)|(.*)$')
  if not cost then return {cost = 0, start = 0, weight = 1, bytes = 0, level = 1, app = ''} end
  return {cost = tonumber(cost), start = tonumber(start), weight = tonumber(weight), bytes = tonumber(bytes),
    counted = counted == '1', level = tonumber(level), app = app}
end

local function read_finishes(text)
  local batch, usual, urgent = string.match(text or '', '^([^|]+)|([^|]+)|([^|]+)$')
  return {tonumber(batch or 0), tonumber(usual or 0), tonumber(urgent or 0)}
end

local function write_finishes(finishes) return string.format('%.3f|%.3f|%.3f', unpack(finishes)) end

-- Takes a job's turn; returns its rank and its field. counted: 1 = it counts against its application's quota.
local function enter_line(F, model, app, priority, weight, head_start, cost, ref, bytes, counted)
  local key = fair_key(F, model)
  local h = redis.call('HMGET', key, 'v', 'w', 'q', 'f:' .. app, 'n:' .. app)
  local weights = tonumber(h[2] or 0)
  if not h[5] then
    weights = weights + weight
    redis.call('HSET', key, 'w', weights, 'w:' .. app, weight)
  end
  local now, finishes, level = tonumber(h[1] or 0), read_finishes(h[4]), level_of(priority)
  local start, rank = tag(now, finishes[level], cost, head_start, ref.speed, weights, ref.usual or cost)
  redis.call('HSET', key, 'q', ms(tonumber(h[3] or 0) + cost), 'n:' .. app, tonumber(h[5] or 0) + 1,
    'f:' .. app, write_finishes(charged(now, finishes, level, cost / weight)))
  return ms(rank), string.format('%.3f|%.3f|%.14g|%.0f|%d|%d|%s', cost, start, weight, bytes, counted, level, app)
end

local function write_fair(fair)
  return string.format('%.3f|%.3f|%.14g|%.0f|%d|%d|%s', fair.cost, fair.start, fair.weight, fair.bytes, fair.counted and 1 or 0, fair.level,
    fair.app)
end

-- A waiting job takes the turn of another priority; returns its rank and its field.
local function change_turn(F, model, fair, rank, before, priority, head_start, ref)
  local key, finishes_of = fair_key(F, model), 'f:' .. fair.app
  local h = redis.call('HMGET', key, 'v', 'w', finishes_of)
  local now, level = tonumber(h[1] or 0), level_of(priority)
  local behind = behind_of(fair.cost, head_start, ref.speed, tonumber(h[2] or 0), ref.usual or fair.cost)
  local finishes
  fair.start, rank, finishes = moved(fair.start, rank, fair.level, level, priority > before, now, read_finishes(h[3]),
    fair.cost / fair.weight, behind)
  if level ~= fair.level then redis.call('HSET', key, finishes_of, write_finishes(finishes)) end
  fair.level = level
  return ms(rank), write_fair(fair)
end

-- The rank that a job would get.
local function next_rank(F, model, app, priority, head_start, cost, ref)
  local h = redis.call('HMGET', fair_key(F, model), 'v', 'w', 'f:' .. app)
  local finish = read_finishes(h[3])[level_of(priority)]
  local _, rank = tag(tonumber(h[1] or 0), finish, cost, head_start, ref.speed, tonumber(h[2] or 0), ref.usual or cost)
  return ms(rank)
end

-- A job leaves the line for a worker, or comes back to it.
local function leave_line(F, model, fair)
  local key = fair_key(F, model)
  local h = redis.call('HMGET', key, 'v', 'q')
  if h[2] then
    redis.call('HSET', key, 'v', ms(math.max(tonumber(h[1] or 0), fair.start)), 'q', ms(tonumber(h[2]) - fair.cost))
  end
end

local function rejoin_line(F, model, fair)
  redis.call('HINCRBYFLOAT', fair_key(F, model), 'q', ms(fair.cost))
end

-- A job has ended; waited: it was still in line. actual: reference ms that it really took, nil if not known.
local function settle(F, model, fair, waited, actual)
  local key, app = fair_key(F, model), fair.app
  local h = redis.call('HMGET', key, 'v', 'w', 'f:' .. app, 'n:' .. app, 'w:' .. app)
  if not h[4] then return end
  if waited then redis.call('HINCRBYFLOAT', key, 'q', ms(-fair.cost)) end
  -- What was used counts, not what was expected; a job that never ran has used nothing.
  local now, finishes = tonumber(h[1] or 0), read_finishes(h[3])
  local used = actual or (waited and 0) or fair.cost
  if used ~= fair.cost then finishes = corrected(now, finishes, fair.level, (used - fair.cost) / fair.weight) end
  local left = tonumber(h[4]) - 1
  if left > 0 then
    redis.call('HSET', key, 'n:' .. app, left, 'f:' .. app, write_finishes(finishes))
    return
  end
  local weights = tonumber(h[2] or 0) - tonumber(h[5] or 0)
  if weights < 0.001 then
    redis.call('DEL', key)
    return
  end
  redis.call('HDEL', key, 'n:' .. app, 'w:' .. app)
  redis.call('HSET', key, 'w', weights)
  if math.max(unpack(finishes)) > now then redis.call('HSET', key, 'f:' .. app, write_finishes(finishes)) else redis.call('HDEL', key, 'f:' .. app) end
end
