-- leave: a worker goes; nothing is sent its way any more. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 worker
-- returns 1
local function leave(keys, a)
  local F, worker = keys[1], a[1]
  local served = redis.call('HGET', worker_key(F, worker), 'serves') or ''
  for model in string.gmatch(served, '[^|]+') do
    redis.call('ZREM', serves_key(F, model), worker)
    redis.call('ZREM', idle_key(F, model), worker)
  end
  redis.call('ZREM', F .. ':workers', worker)
  redis.call('DEL', worker_key(F, worker), inbox_key(F, worker))
  -- A bell that it took along is rung again for those who stay.
  for model in string.gmatch(served, '[^|]+') do
    if redis.call('EXISTS', queue_key(F, model)) == 1 then ring(F, model) end
  end
  return 1
end
verb('leave', leave, {'allow-oom'})
