-- policy: change the limits of queues and the quota of an application; _admit.lua keeps them. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 model name, '' none 2 key part of the model 3 app, '' none 4 key part of the app
--      5 changes (msgpack map, false takes a limit away): max_queue, max_bytes, hedge_from and hedge_percent of the
--        fabric; max_queue of the model if one is named; weight, concurrency, rpm, tpm and max_queue of the application if one is named
-- returns 1
local function set_quota(policy, app, key, changes)
  local ok, quota = pcall(cmsgpack.unpack, redis.call('HGET', policy, key) or '')
  if not ok or type(quota) ~= 'table' then quota = {} end
  for name, value in pairs(changes) do quota[name] = value or nil end
  quota.name = nil
  if next(quota) == nil then return redis.call('HDEL', policy, key) end
  quota.name = app
  redis.call('HSET', policy, key, cmsgpack.pack(quota))
end

local function policy(keys, a)
  local F, changes = keys[1], cmsgpack.unpack(a[5])
  local key, suffix = F .. ':policy', a[1] ~= '' and ':' .. a[2] or ''
  if a[3] ~= '' then
    set_quota(key, a[3], 'app:' .. a[4], changes)
    return 1
  end
  if a[1] ~= '' then redis.call('HSETNX', F .. ':models', a[2], a[1]) end
  for name, value in pairs(changes) do
    if value then redis.call('HSET', key, name .. suffix, value) else redis.call('HDEL', key, name .. suffix) end
  end
  return 1
end
verb('policy', policy, {'allow-oom'})
