-- order: tell a worker what to do for a group; the leader alone may. Safe to repeat: the worker goes by the order's id.
-- KEYS 1 fabric prefix
-- ARGV 1 the leader 2 its term 3 worker 4 order id 5 the order (msgpack)
-- returns 1 | 0 the caller does not lead any more | -1 that worker is gone
-- allow-oom: what ends a group has to get through.
local function order(keys, a)
  local F = keys[1]
  if not leads(F, a[1], a[2], now_ms()) then return 0 end
  return tell(F, a[3], 't', 'order', 'o', a[4], 'd', a[5]) and 1 or -1
end
verb('order', order, {'allow-oom'})
