-- rerank: give a waiting job another priority, and with it another place in line. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 id 2 priority 0-10 3 its head start in ms
-- returns 'changed' | the state it is in instead | 'unknown'
local function rerank(keys, a)
  local F, id, priority = keys[1], a[1], tonumber(a[2])
  local job = job_key(F, id)
  local h = redis.call('HMGET', job, 'state', 'queue', 'priority', 'rank', 'member', 'fair')
  if h[1] ~= 'queued' then return h[1] or 'unknown' end
  local model, before = h[2], tonumber(h[3])
  if priority == before then return 'changed' end
  local learned = redis.call('HMGET', learned_key(F, model), 'ref', 'usual')
  local ref = read_reference(learned[1])
  ref.usual = tonumber(learned[2])
  local rank, fair = change_turn(F, model, read_fair(h[6]), tonumber(h[4]), before, priority, tonumber(a[3]), ref)
  local head, flags, affinity = string.match(h[5], '^(.*|)([a-z]*)(|[^|]*)$')
  local member = head .. string.gsub(flags, 'b', '') .. affinity
  if priority <= 1 then member = with_flag(member, 'b') end
  redis.call('HSET', job, 'priority', priority, 'rank', rank, 'member', member, 'fair', fair)
  -- One that waits out a backoff is not in line now; it comes back with the new rank.
  if redis.call('ZREM', queue_key(F, model), h[5]) == 1 then
    redis.call('ZADD', queue_key(F, model), rank, member)
    ring(F, model)
  end
  return 'changed'
end
verb('rerank', rerank, {'allow-oom'})
