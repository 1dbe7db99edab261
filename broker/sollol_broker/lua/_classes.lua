-- What the workers of a model can do together. F:shares:MODEL names each worker's share, F:classes:MODEL holds their sums, so
-- that a claim costs the same however many there are: both in whole numbers, so that adding and taking away leaves no trace. The field `ref` of F:learned:MODEL is
-- "ms per prompt token|ms per output token|speed" of the fastest class, and what all serve per second in its seconds.
-- share  "class|slots|load ms|prompt µs|output µs|context tokens|crowding %"
local NO_REF = '1|20|1'                    -- before anybody has told

local function read_share(text)
  local group, cap, load, a, b, context, crowding = string.match(text, '^(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|(%d+)$')
  if not group then return nil end
  return {group = tonumber(group), cap = tonumber(cap), load = tonumber(load), a = tonumber(a), b = tonumber(b), context = tonumber(context),
    crowding = tonumber(crowding)}
end

-- The sums, by class: [[class, slots, slots x load ms, slots x prompt µs, slots x output µs, slots x crowding %], …]; and how
-- many workers take which longest context: [[tokens, workers], …]
local function read_sums(F, model)
  local packed = redis.call('GET', classes_key(F, model))
  if not packed then return {}, {} end
  return unpack(cmsgpack.unpack(packed))
end

-- Adds to the row of a sorted list that begins with `name`; a row whose second figure comes to nothing goes away.
local function add_to_row(rows, name, ...)
  local at = 1
  while rows[at] and rows[at][1] < name do at = at + 1 end
  if not rows[at] or rows[at][1] ~= name then table.insert(rows, at, {name}) end
  for i, part in ipairs({...}) do rows[at][i + 1] = (rows[at][i + 1] or 0) + part end
  if rows[at][2] <= 0 then table.remove(rows, at) end
end

local function add_to_class(F, model, share, sign)
  local sums, contexts = read_sums(F, model)
  local n = sign * share.cap
  add_to_row(sums, share.group, n, n * share.load, n * share.a, n * share.b, n * share.crowding)
  add_to_row(contexts, share.context, sign)
  if #contexts > 0 then
    redis.call('SET', classes_key(F, model), cmsgpack.pack({sums, contexts}), 'KEEPTTL')
  else
    redis.call('DEL', classes_key(F, model))
  end
end

-- The classes as the rule wants them, without one worker's own share (nil: all of them).
local function read_classes(F, model, own)
  local found = {}
  local sums = read_sums(F, model)
  for _, sum in ipairs(sums) do
    local group, cap, load, a, b, crowding = unpack(sum)
    if own and own.group == group then
      cap, load, a, b = cap - own.cap, load - own.cap * own.load, a - own.cap * own.a, b - own.cap * own.b
      crowding = crowding - own.cap * own.crowding
    end
    if cap > 0 then
      found[#found + 1] = {cap = cap, load = load / cap, a = a / cap / 1000, b = b / cap / 1000, crowding = crowding / cap / 100}
    end
  end
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
  -- Another worker of that node tells of it again with its next advert.
  redis.call('ZREM', hosts_key(F, model), redis.call('HGET', worker_key(F, worker), 'node_key') or '')
  local text = redis.call('HGET', shares_key(F, model), worker)
  local share = text and read_share(text)
  if share then
    redis.call('HDEL', shares_key(F, model), worker)
    add_to_class(F, model, share, -1)
    set_reference(F, model)
  end
  return share and true or false
end

-- Enters a worker's share; returns whether others have lost theirs because their advert ran out.
local function place(F, model, worker, node, text, now, until_ms, ttl)
  local serves, shares, classes, hosts = serves_key(F, model), shares_key(F, model), classes_key(F, model), hosts_key(F, model)
  local lost = false
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', serves, '-inf', ms(now))) do
    lost = withdraw(F, model, gone) or lost
  end
  redis.call('ZADD', serves, until_ms, worker)
  redis.call('ZADD', hosts, until_ms, node)
  redis.call('ZREMRANGEBYSCORE', hosts, '-inf', ms(now))
  local before, share = redis.call('HGET', shares, worker), read_share(text)
  if share and before ~= text then
    local old = before and read_share(before)
    if old then add_to_class(F, model, old, -1) end
    redis.call('HSET', shares, worker, text)
    add_to_class(F, model, share, 1)
    set_reference(F, model)
  end
  for _, key in ipairs({serves, shares, classes, hosts}) do redis.call('PEXPIRE', key, ttl) end
  return lost
end

local function reference(F, model) return read_reference(redis.call('HGET', learned_key(F, model), 'ref')) end

-- Whether another live worker takes longer prompts than this one.
local function has_more_context(F, model, context)
  local _, contexts = read_sums(F, model)
  for _, row in ipairs(contexts) do
    if row[1] == 0 or row[1] > context then return true end
  end
  return false
end
