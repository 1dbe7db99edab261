-- advertise: say that a worker lives and what it serves; its inbox comes into being with it. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 worker 2 node 3 TTL ms 4 key part of the node 5 worker's fields (msgpack map of strings)
--      6 node's fields (msgpack map of strings) 7 what was counted since the last time (msgpack; see _series.lua) or ''
--      8… model key, model name, share (see _classes.lua) of each model
-- returns {1 | 2 the inbox was made anew, what an operator has set for the node (msgpack; '' nothing), Redis' time in ms,
--      the number of the counts that have been taken}
-- allow-oom: a worker that cannot advertise is taken for dead.
-- For so long it can be seen that a worker went without a word.
local GONE_KEPT_MS = 3600 * 1000
local BUSY, SLOTS = 10, 12                 -- where the sums of these gauges stand

local function keep_inbox(F, who, ttl)
  local inbox, made = inbox_key(F, who), 1
  if redis.call('EXISTS', inbox) == 0 then
    redis.call('XADD', inbox, '*', 't', 'hello')
    made = 2
  end
  redis.call('PEXPIRE', inbox, ttl)
  return made
end

local function set_fields(key, fields)
  for name, value in pairs(fields) do redis.call('HSET', key, name, value) end
end

-- A node's gauges tell of all its workers: the slots of the others, as long as their adverts live, are added to this one's.
local function add_crew(node, worker, gauges, until_ms, now)
  local mine, crew = {gauges[BUSY], gauges[SLOTS]}, {}
  for each, till, busy, slots in string.gmatch(redis.call('HGET', node, 'crew') or '', '([^|;]+)|([^|]+)|([^|]+)|([^;]+);') do
    if each ~= worker and tonumber(till) > now then
      crew[#crew + 1] = string.format('%s|%s|%s|%s;', each, till, busy, slots)
      gauges[BUSY], gauges[SLOTS] = gauges[BUSY] + tonumber(busy), gauges[SLOTS] + tonumber(slots)
    end
  end
  crew[#crew + 1] = string.format('%s|%s|%d|%d;', worker, until_ms, mine[1], mine[2])
  redis.call('HSET', node, 'crew', table.concat(crew))
end

local function advertise(keys, a)
  local F, worker, ttl, now = keys[1], a[1], tonumber(a[3]), now_ms()
  local until_ms = ms(now + ttl)
  local advert, node = worker_key(F, worker), node_key(F, a[4])
  set_fields(advert, cmsgpack.unpack(a[5]))
  redis.call('HSET', advert, 'id', worker, 'node', a[2], 'node_key', a[4], 'seen', ms(now))
  redis.call('PEXPIRE', advert, ttl)
  set_fields(node, cmsgpack.unpack(a[6]))
  redis.call('HSET', node, 'name', a[2], 'seen', ms(now))
  redis.call('PEXPIRE', node, ttl)
  redis.call('ZADD', F .. ':workers', until_ms, worker)
  redis.call('ZREMRANGEBYSCORE', F .. ':workers', '-inf', ms(now - GONE_KEPT_MS))
  local served = {}
  for i = 8, #a, 3 do
    served[#served + 1] = a[i]
    redis.call('HSETNX', F .. ':models', a[i], a[i + 1])
    local lost = place(F, a[i], worker, a[4], a[i + 2], now, until_ms, ttl)
    if lost then rouse(F, a[i]) end
  end
  -- A model that is no longer served is taken back, so that nothing waits for it in vain.
  local before = redis.call('HGET', advert, 'serves')
  local wanted = '|' .. table.concat(served, '|') .. '|'
  for model in string.gmatch(before or '', '[^|]+') do
    if not string.find(wanted, '|' .. model .. '|', 1, true) then
      withdraw(F, model, worker)
      rouse(F, model)
    end
  end
  local controls = redis.call('HGET', F .. ':controls', a[4]) or ''
  local ok, set = pcall(cmsgpack.unpack, controls)
  local closed = ok and type(set) == 'table' and (set.cordoned or set.draining)
  redis.call('HSET', advert, 'serves', wanted, 'cordoned', closed and '1' or '0')
  local told, taken = a[7] ~= '' and cmsgpack.unpack(a[7]) or nil, ''
  if told then
    add_crew(node, worker, told[2], until_ms, now)
    taken = note_series(F, advert, a[2], a[4], told, now)
  end
  look_at_queues(F, now)
  return {keep_inbox(F, worker, ttl), controls, ms(now), taken}
end
verb('advertise', advertise, {'allow-oom'})
