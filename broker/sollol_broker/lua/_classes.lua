-- What the workers of a model can do together. F:shares:MODEL names each worker's share, F:classes:MODEL holds the sums by
-- class: both in whole numbers, so that adding and taking away leaves no trace. The field `ref` of F:learned:MODEL is
-- "ms per prompt token|ms per output token|speed" of the fastest class, and what all serve per second in its seconds.
-- share  "class|slots|load ms|prompt µs|output µs|context tokens"
local NO_REF = '1|20|1'                    -- before anybody has told

local function read_share(text)
  local group, cap, load, a, b, context = string.match(text, '^(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|(%d+)$')
  if not group then return nil end
  return {group = group, cap = tonumber(cap), load = tonumber(load), a = tonumber(a), b = tonumber(b), context = tonumber(context)}
end

local function read_sums(text)
  local cap, load, a, b = string.match(text, '^(%d+)|(%d+)|(%d+)|(%d+)$')
  return tonumber(cap), tonumber(load), tonumber(a), tonumber(b)
end

local function whole(x) return string.format('%.0f', x) end

local function add_to_class(key, share, sign)
  local cap, load, a, b = read_sums(redis.call('HGET', key, share.group) or '0|0|0|0')
  local n = sign * share.cap
  cap, load, a, b = cap + n, load + n * share.load, a + n * share.a, b + n * share.b
  if cap > 0 then
    redis.call('HSET', key, share.group, table.concat({whole(cap), whole(load), whole(a), whole(b)}, '|'))
  else
    redis.call('HDEL', key, share.group)
  end
end

-- The classes as the rule wants them, without one worker's own share (nil: all of them).
local function read_classes(F, model, own)
  local flat, found = redis.call('HGETALL', classes_key(F, model)), {}
  for i = 1, #flat, 2 do
    local cap, load, a, b = read_sums(flat[i + 1])
    if own and own.group == flat[i] then
      cap, load, a, b = cap - own.cap, load - own.cap * own.load, a - own.cap * own.a, b - own.cap * own.b
    end
    if cap > 0 then
      found[#found + 1] = {group = tonumber(flat[i]), cap = cap, load = load / cap, a = a / cap / 1000, b = b / cap / 1000}
    end
  end
  if #found > 1 then table.sort(found, function(x, y) return x.group < y.group end) end
  return found
end

local function set_reference(F, model)
  local classes = read_classes(F, model)
  local best, best_ms
  for _, each in ipairs(classes) do
    each.ms = math.max(0.001, TYPICAL_PROMPT * each.a + TYPICAL_OUTPUT * each.b)
    if not best or each.ms < best_ms then best, best_ms = each, each.ms end
  end
  if not best then return end
  local speed = 0
  for _, each in ipairs(classes) do speed = speed + each.cap * best_ms / each.ms end
  redis.call('HSET', learned_key(F, model), 'ref', string.format('%.6f|%.6f|%.6f', best.a, best.b, speed))
  redis.call('PEXPIRE', learned_key(F, model), LEARNED_TTL_MS)
end

-- ms per prompt token and per output token of the fastest workers, and how many of those all together are worth;
-- submit adds `usual`, the ms that a usual job takes there.
local function read_reference(text)
  local a, b, speed = string.match(text or NO_REF, '^([^|]+)|([^|]+)|([^|]+)$')
  return {a = tonumber(a), b = tonumber(b), speed = math.max(0.01, tonumber(speed))}
end

local function withdraw(F, model, worker)
  redis.call('ZREM', serves_key(F, model), worker)
  redis.call('ZREM', idle_key(F, model), worker)
  redis.call('ZREM', armed_key(F, model), worker)
  local text = redis.call('HGET', shares_key(F, model), worker)
  local share = text and read_share(text)
  if share then
    redis.call('HDEL', shares_key(F, model), worker)
    add_to_class(classes_key(F, model), share, -1)
    set_reference(F, model)
  end
  return share and true or false
end

-- Enters a worker's share; returns whether others have lost theirs because their advert ran out.
local function place(F, model, worker, text, now, until_ms, ttl)
  local serves, shares, classes = serves_key(F, model), shares_key(F, model), classes_key(F, model)
  local lost = false
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', serves, '-inf', ms(now))) do
    lost = withdraw(F, model, gone) or lost
  end
  redis.call('ZADD', serves, until_ms, worker)
  local before, share = redis.call('HGET', shares, worker), read_share(text)
  if share and before ~= text then
    local old = before and read_share(before)
    if old then add_to_class(classes, old, -1) end
    redis.call('HSET', shares, worker, text)
    add_to_class(classes, share, 1)
    set_reference(F, model)
  end
  for _, key in ipairs({serves, shares, classes}) do redis.call('PEXPIRE', key, ttl) end
  return lost
end

local function reference(F, model) return read_reference(redis.call('HGET', learned_key(F, model), 'ref')) end

-- Whether another live worker takes longer prompts than this one.
local function has_more_context(F, model, context)
  for _, text in ipairs(redis.call('HVALS', shares_key(F, model))) do
    local share = read_share(text)
    if share and (share.context == 0 or share.context > context) then return true end
  end
  return false
end
