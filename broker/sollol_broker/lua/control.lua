-- control: change what an operator has set for a node; its workers are told. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 node 2 key part of the node 3 changes, msgpack map: see controls.py. A value that is the default takes it away
-- returns {what is set now (msgpack; '' nothing), live workers of the node}
local USUAL_PRIORITY = 5

local function is_default(name, value)
  if type(value) == 'table' then return #value == 0 end
  return value == false or (name == 'priority' and tonumber(value) == USUAL_PRIORITY)
end

local function changed(set, changes, node)
  local is_empty = true
  for name, value in pairs(changes) do set[name] = value end
  set.name = nil
  for name, value in pairs(set) do
    if type(name) ~= 'string' or is_default(name, value) then set[name] = nil else is_empty = false end
  end
  if is_empty then return '' end
  set.name = node
  return cmsgpack.pack(set)
end

local function workers_of(F, node, now)
  local found = {}
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', F .. ':workers', ms(now), '+inf')) do
    if redis.call('HGET', worker_key(F, worker), 'node_key') == node then found[#found + 1] = worker end
  end
  return found
end

-- Takes a worker out of all queues at once; its next advert brings it back, if it may come back.
local function close(F, worker)
  local served = redis.call('HGET', worker_key(F, worker), 'serves') or ''
  for model in string.gmatch(served, '[^|]+') do withdraw(F, model, worker) end
  for model in string.gmatch(served, '[^|]+') do
    if redis.call('EXISTS', queue_key(F, model)) == 1 then ring(F, model) end
  end
end

local function control(keys, a)
  local F, node = keys[1], a[2]
  local ok, set = pcall(cmsgpack.unpack, redis.call('HGET', F .. ':controls', node) or '')
  local text = changed(ok and type(set) == 'table' and set or {}, cmsgpack.unpack(a[3]), a[1])
  if text == '' then redis.call('HDEL', F .. ':controls', node) else redis.call('HSET', F .. ':controls', node, text) end
  local closed = text ~= '' and cmsgpack.unpack(text)
  closed = closed and (closed.cordoned or closed.draining)
  local workers = workers_of(F, node, now_ms())
  for _, worker in ipairs(workers) do
    redis.call('HSET', worker_key(F, worker), 'cordoned', closed and '1' or '0')
    if closed then close(F, worker) end
    tell(F, worker, 't', 'control')
  end
  return {text, #workers}
end
verb('control', control, {'allow-oom'})
