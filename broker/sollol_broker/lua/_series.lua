-- Numbers over time. F:series:WHO:STEP:CHUNK holds CHUNK points, each STEP seconds long, by their place in it. WHO is all,
-- m:MODEL or n:NODE. A point is what series.py calls one, packed: {counts and sums}, five kinds of durations as {bucket, how
-- many, …}, {gauges}, {peaks}. Each chunk runs out by itself, and only so many models and nodes have series: memory is bounded.
local note_series, look_at_queues
do
local STEPS = {{1, 600}, {10, 21600}, {300, 604800}}  -- seconds, kept seconds
local CHUNK = 120
local MOST_MODELS, MOST_NODES = 64, 256
local IDLE_S = 600                         -- whoever has told nothing for so long makes room for another
local FORGET_S = 7 * 24 * 3600
local AHEAD_S = 2                          -- a point further in the future was stamped before the clock stepped back
local LOOK_MS = 1000                       -- queues are looked at so often, by whoever comes first
local MOST_LOOKED_AT = 1000
local OTHER = 'other'                      -- stands for the models that have no series
local SUMS, TTFT, GAP, WAIT, LATENCY, RUN, GAUGES, PEAKS = 1, 2, 3, 4, 5, 6, 7, 8

local function empty_point() return {{}, {}, {}, {}, {}, {}, {}, {}} end

-- The twin of Point.add.
local function add_point(into, from)
  for _, list in ipairs({SUMS, GAUGES}) do
    for i, n in ipairs(from[list]) do into[list][i] = (into[list][i] or 0) + n end
  end
  for list = TTFT, RUN do
    local mine, theirs = into[list], from[list]
    for i = 1, #theirs, 2 do
      local at = 1
      while mine[at] and mine[at] ~= theirs[i] do at = at + 2 end
      mine[at], mine[at + 1] = theirs[i], (mine[at + 1] or 0) + theirs[i + 1]
    end
  end
  for i, n in ipairs(from[PEAKS]) do into[PEAKS][i] = math.max(into[PEAKS][i] or 0, n) end
end

-- rows: {second, point}…
local function add_rows(F, who, rows, now_s)
  for _, step in ipairs(STEPS) do
    local seconds, kept = step[1], step[2]
    local places = {}
    for _, row in ipairs(rows) do
      local place = math.floor(row[1] / seconds)
      if row[1] <= now_s + AHEAD_S and row[1] > now_s - kept then
        places[place] = places[place] or empty_point()
        add_point(places[place], row[2])
      end
    end
    for place, point in pairs(places) do
      local key = series_key(F, string.format('%s:%d:%d', who, seconds, math.floor(place / CHUNK)))
      local old = redis.call('HGET', key, place % CHUNK)
      if old then add_point(point, cmsgpack.unpack(old)) end
      redis.call('HSET', key, place % CHUNK, cmsgpack.pack(point))
      if not old then redis.call('PEXPIRE', key, 1000 * (kept + CHUNK * seconds)) end
    end
  end
end

-- Whether it has a series, or may begin one.
local function has_series(F, index, name, most, now_s)
  if not redis.call('ZSCORE', index, name) then
    redis.call('ZREMRANGEBYSCORE', index, '-inf', now_s - FORGET_S)
    if redis.call('ZCARD', index) >= most then
      local oldest = redis.call('ZRANGE', index, 0, 0, 'WITHSCORES')
      if tonumber(oldest[2]) > now_s - IDLE_S then return false end
      redis.call('ZREM', index, oldest[1])
    end
  end
  redis.call('ZADD', index, string.format('%.0f', now_s), name)
  return true
end

-- What of a model's point is told of the node.
local function of_node(point)
  return {point[SUMS], point[TTFT], {}, {}, {}, point[RUN], {}, {}}
end

-- Adds what ever was counted there. A name once told stays, so that its count never falls; one too many is another's.
local function add_total(F, node_key, model, rows)
  local key, total = totals_key(F, node_key), empty_point()
  if redis.call('HEXISTS', key, model) == 0 and redis.call('HLEN', key) >= MOST_MODELS then model = OTHER end
  for _, row in ipairs(rows) do add_point(total, row[2]) end
  local old = redis.call('HGET', key, model)
  if old then add_point(total, cmsgpack.unpack(old)) end
  redis.call('HSET', key, model, cmsgpack.pack(total))
end

-- told: {number, gauges of the node, {model key, model name, rows}…} of a worker; the same number counts once.
-- returns the number that has been taken; '' none
function note_series(F, advert, node, node_key, told, now)
  local before = redis.call('HGET', advert, 'told')
  if before == tostring(told[1]) then return before end
  if memory_is_full(F, now) then return before or '' end
  redis.call('HSET', advert, 'told', told[1])
  local now_s = math.floor(now / 1000)
  local all, here = {}, {{now_s, {{}, {}, {}, {}, {}, {}, told[2], {}}}}
  local charted = has_series(F, F .. ':series_nodes', node, MOST_NODES, now_s)
  for i = 3, #told do
    local model, name, rows = told[i][1], told[i][2], told[i][3]
    local is_charted = has_series(F, F .. ':series_models', name, MOST_MODELS, now_s)
    if is_charted then add_rows(F, 'm:' .. model, rows, now_s) end
    for _, row in ipairs(rows) do
      all[#all + 1] = row
      here[#here + 1] = {row[1], of_node(row[2])}
    end
    if charted then add_total(F, node_key, is_charted and name or OTHER, rows) end
  end
  if #all > 0 then add_rows(F, 'all', all, now_s) end
  if charted then
    add_rows(F, 'n:' .. node_key, here, now_s)
    redis.call('PEXPIRE', totals_key(F, node_key), 1000 * FORGET_S)
  end
  return tostring(told[1])
end

-- Notes how many jobs wait for each model and how long the first of them has.
function look_at_queues(F, now)
  local h = redis.call('HMGET', F .. ':limits', 'sampled', 'full')
  if h[2] == '1' or (h[1] and math.abs(now - tonumber(h[1])) < LOOK_MS) then return end
  redis.call('HSET', F .. ':limits', 'sampled', ms(now))
  if redis.call('HLEN', F .. ':models') > MOST_LOOKED_AT then return end
  local now_s, waiting, longest = math.floor(now / 1000), 0, 0
  local models = redis.call('HGETALL', F .. ':models')
  for i = 1, #models, 2 do
    local queue = queue_key(F, models[i])
    local head = redis.call('ZRANGE', queue, 0, 0)[1]
    if head then
      local n, submitted = redis.call('ZCARD', queue), string.match(head, '^[^|]*|[^|]*|[^|]*|(%d+)')
      local age = math.max(0, math.floor(now - tonumber(submitted or now)))
      waiting, longest = waiting + n, math.max(longest, age)
      if has_series(F, F .. ':series_models', models[i + 1], MOST_MODELS, now_s) then
        add_rows(F, 'm:' .. models[i], {{now_s, {{}, {}, {}, {}, {}, {}, {}, {n, age}}}}, now_s)
      end
    end
  end
  if waiting > 0 then add_rows(F, 'all', {{now_s, {{}, {}, {}, {}, {}, {}, {}, {waiting, longest}}}}, now_s) end
end
end
