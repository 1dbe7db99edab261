-- letters: put dead letters, or jobs that failed on every try, back in line; or drop dead letters. Safe to repeat: only
-- what has ended so is touched.
-- KEYS 1 fabric prefix
-- ARGV 1 'retry' | 'drop' 2 head starts in ms of the priorities 0-10, msgpack list 3… ids
-- returns for each id 'retried' | 'dropped' | the state it is in instead (failed: its body is no longer there) | 'batch': it is
--         one of a batch's, which has taken its end and waits for nothing more of it | 'unknown': its record is gone
local function forget(F, id)
  redis.call('ZREM', F .. ':dead', id)
  redis.call('LREM', F .. ':ended', 0, id)
  redis.call('DEL', job_key(F, id), blob_key(F, id), events_key(F, id))
end

-- A life of its own: nothing that counts against the job is left, only what `explain` tells.
local function wipe(job)
  local stale = {'nonce', 'worker', 'node', 'node_key', 'claimed', 'first', 'seq', 'lease', 'predicted', 'why', 'ended',
    'attempt', 'crashes', 'errors', 'releases', 'failed', 'failed_at', 'alone_for', 'alone_at', 'cache'}
  for _, field in ipairs(redis.call('HKEYS', job)) do
    if string.sub(field, 1, 3) == 'no:' then stale[#stale + 1] = field end
  end
  redis.call('HDEL', job, unpack(stale))
end

local function revive(F, id, head_starts, now)
  local job = job_key(F, id)
  local h = redis.call('HMGET', job, 'queue', 'model', 'priority', 'member', 'fair', 'submitted', 'app')
  local model, fair = h[1], read_fair(h[5])
  local learned = redis.call('HMGET', learned_key(F, model), 'ref', 'usual')
  local ref, policy = read_reference(learned[1]), read_policy(F, model, fair.app)
  ref.usual = tonumber(learned[2])
  local head, flags, affinity = string.match(h[4], '^([^|]+|%d+|%d+|)%d+|([a-z]*)|(%x*)$')
  local rank, turn = enter_line(F, model, fair.app, tonumber(h[3]), policy.weight, head_starts[tonumber(h[3]) + 1], fair.cost, ref,
    policy.max_bytes and fair.bytes or 0, policy.quota and 1 or 0)
  local member = string.format('%s%.0f|%s|%s', head, now, string.gsub(flags, '[qx]', ''), affinity)
  wipe(job)
  redis.call('HSETNX', job, 'born', h[6])
  -- Its deadline was its submitter's; whoever brings it back wants the answer all the same.
  redis.call('HSET', job, 'state', 'queued', 'submitted', ms(now), 'deadline', '0', 'rank', rank, 'member', member, 'fair', turn)
  redis.call('PERSIST', job)
  redis.call('PERSIST', blob_key(F, id))
  redis.call('DEL', events_key(F, id))     -- its end is no end any more
  redis.call('ZREM', F .. ':dead', id)
  redis.call('ZREM', F .. ':failed', id)
  redis.call('LREM', F .. ':ended', 0, id)
  redis.call('ZADD', queue_key(F, model), rank, member)
  redis.call('HSETNX', F .. ':models', model, h[2])
  redis.call('HINCRBY', F .. ':stats', 'submitted', 1)
  if policy.max_bytes then redis.call('HINCRBY', F .. ':stats', 'bytes', fair.bytes) end
  if policy.quota then
    redis.call('HINCRBY', usage_key(F, fair.app), 'n', 1)
    redis.call('PEXPIRE', usage_key(F, fair.app), TALLY_TTL_MS)
  end
  note_submitted(F, fair.app, h[7] or '', now)
  ring(F, model)
end

local function letters(keys, a)
  local F, now, head_starts, replies = keys[1], now_ms(), cmsgpack.unpack(a[2]), {}
  for i = 3, #a do
    local id = a[i]
    local h = redis.call('HMGET', job_key(F, id), 'state', 'member', 'ended')
    local is_whole = h[2] and envelope_of(F, id)
    if not h[1] or (h[1] == 'dead' and a[1] == 'retry' and not is_whole) then
      forget(F, id)
      replies[#replies + 1] = 'unknown'
    elseif a[1] == 'retry' and (h[1] == 'dead' or h[1] == 'failed') and not is_wanted(F, id) then
      replies[#replies + 1] = 'batch'
    elseif h[1] == 'failed' and a[1] == 'retry' and is_whole then
      note_attempt(F, id, 'error', tonumber(h[3]))
      revive(F, id, head_starts, now)
      replies[#replies + 1] = 'retried'
    elseif h[1] ~= 'dead' then
      replies[#replies + 1] = h[1]
    elseif a[1] == 'drop' then
      forget(F, id)
      replies[#replies + 1] = 'dropped'
    else
      revive(F, id, head_starts, now)
      replies[#replies + 1] = 'retried'
    end
  end
  return replies
end
verb('letters', letters, {'allow-oom'})
