-- call: ask a worker to ask its LLM server about the models that it holds, or to change them. Safe to repeat: the
-- worker goes by the call's id. What is asked lies in a key that clients cannot write, so that none can ask for it.
-- KEYS 1 fabric prefix
-- ARGV 1 worker 2 call id 3 the call (msgpack) 4 how long it waits to be read (ms)
-- returns 1 | 0 that worker is gone
local function call(keys, a)
  local F = keys[1]
  if redis.call('EXISTS', inbox_key(F, a[1])) == 0 then return 0 end
  if redis.call('SET', call_key(F, a[2]), a[3], 'NX', 'PX', a[4]) then tell(F, a[1], 't', 'call', 'o', a[2]) end
  return 1
end
verb('call', call, {'allow-oom'})
