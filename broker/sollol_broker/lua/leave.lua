-- leave: a worker goes; nothing is sent its way any more. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 worker
-- returns 1
local function leave(keys, a)
  local F, worker = keys[1], a[1]
  local served = redis.call('HGET', worker_key(F, worker), 'serves') or ''
  for model in string.gmatch(served, '[^|]+') do withdraw(F, model, worker) end
  redis.call('ZREM', F .. ':workers', worker)
  redis.call('DEL', worker_key(F, worker), inbox_key(F, worker))
  -- A bell that it took along is rung again for those who stay; and they may have to help now.
  for model in string.gmatch(served, '[^|]+') do
    rouse(F, model)
  end
  return 1
end
verb('leave', leave, {'allow-oom'})
