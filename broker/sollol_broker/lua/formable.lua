-- formable: say whether a model that no worker serves could be served by a group, or why not; the leader alone may. Tells
-- those who wait for it what is being done, too. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 the leader 2 its term 3 model key 4 TTL ms 5 formable 0|1 6 reasons (JSON object, node to why)
--      7 a line for the readers of the jobs that wait; '' none
-- returns -1 the caller does not lead any more | jobs that were told
-- allow-oom: those who wait for a group have to hear of it.
local MOST_TOLD = 256
local function formable(keys, a)
  local F, key = keys[1], formable_key(keys[1], a[3])
  if not leads(F, a[1], a[2], now_ms()) then return -1 end
  redis.call('HSET', key, 'ok', a[5], 'reasons', a[6])
  redis.call('PEXPIRE', key, a[4])
  if a[7] == '' then return 0 end
  local members = redis.call('ZRANGE', queue_key(F, a[3]), 0, MOST_TOLD - 1)
  for _, member in ipairs(members) do
    local id = string.match(member, '^[^|]*')
    local h = redis.call('HMGET', job_key(F, id), 'stream', 'inbox')
    if h[1] == '1' then
      redis.call('XADD', events_key(F, id), '*', 't', 'note', 'f', '0', 'x', a[7])
    end
    tell(F, h[2], 't', 'note', 'j', id, 'f', '0', 'x', a[7])
  end
  return #members
end
verb('formable', formable, {'allow-oom'})
