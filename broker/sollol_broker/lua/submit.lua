-- submit: take a job in. Safe to repeat: the id decides.
-- KEYS 1 fabric prefix
-- ARGV 1 id 2 model name 3 model key 4 app 5 priority 0-10 6 head start ms (of the priority) 7 stream 0|1
--      8 ms until the deadline, 0 none 9 inbox of the submitter 10 result TTL ms 11 prompt tokens 12 expected output
--      tokens 13 requires (msgpack, '' none) 14 accept with no node 0|1 15 envelope 16… blobs
-- returns {'queued', woken 0|1} | {'known', state} | {'no_node'} | {'full', reason, retry after ms}
-- Not allow-oom: a new job is what a full Redis must refuse.
local MEMORY_LOOK_MS = 250                 -- INFO costs 20 us: look this often, not at each job
local MEMORY_SHARE = 0.85                  -- of maxmemory; the rest is for answers of the jobs already accepted

local function memory_is_full(F, now)
  local limits = F .. ':limits'
  local h = redis.call('HMGET', limits, 'looked', 'full')
  if h[1] and math.abs(now - tonumber(h[1])) < MEMORY_LOOK_MS then return h[2] == '1' end
  local info = redis.pcall('INFO', 'memory')
  local full = false
  if type(info) == 'string' then           -- a role without INFO goes on without this look
    local used = tonumber(string.match(info, 'used_memory:(%d+)') or 0)
    local most = tonumber(string.match(info, 'maxmemory:(%d+)') or 0)
    full = most > 0 and used > most * MEMORY_SHARE
  end
  redis.call('HSET', limits, 'looked', ms(now), 'full', full and '1' or '0')
  return full
end

-- What claim could not read would stop every worker at this queue.
local function is_readable(needs)
  if needs == '' then return true end
  local ok, wanted = pcall(cmsgpack.unpack, needs)
  if not ok or type(wanted) ~= 'table' then return false end
  local vram, labels = type(wanted.vram_mib), type(wanted.labels)
  return (vram == 'nil' or vram == 'number') and (labels == 'nil' or labels == 'table')
end

local function submit(keys, a)
  local F, id, model = keys[1], a[1], a[3]
  if not string.match(id, '^[%w._~-]+$') then return redis.error_reply('ERR a job id is of [A-Za-z0-9._~-]') end
  if not is_readable(a[13]) then return redis.error_reply('ERR the requirements are malformed') end
  local job = job_key(F, id)
  local state = redis.call('HGET', job, 'state')
  if state then return {'known', state} end
  local now = now_ms()
  if a[14] ~= '1' and redis.call('ZCOUNT', serves_key(F, model), ms(now), '+inf') == 0 then return {'no_node'} end
  if memory_is_full(F, now) then return {'full', 'memory', 5000} end

  local rank = ms(now + tonumber(a[6]))
  local deadline = a[8] == '0' and '0' or ms(now + tonumber(a[8]))
  local prompt, output = math.max(0, tonumber(a[11])), math.max(0, tonumber(a[12]))
  local member = string.format('%s|%.0f|%.0f|%.0f|%s', id, prompt, output, now, a[13] ~= '' and 'r' or '')
  redis.call('HSET', job, 'state', 'queued', 'model', a[2], 'queue', model, 'app', a[4], 'priority', a[5],
    'stream', a[7], 'inbox', a[9], 'ttl', string.format('%.0f', tonumber(a[10])), 'rank', rank, 'member', member,
    'submitted', ms(now), 'deadline', deadline, 'fence', '0', 'attempt', '0', 'blobs', #a - 15, 'requires', a[13],
    'env', a[15])
  for i = 16, #a do redis.call('HSET', blob_key(F, id), i - 16, a[i]) end
  if deadline ~= '0' then redis.call('ZADD', F .. ':deadlines', deadline, id) end
  redis.call('ZADD', queue_key(F, model), rank, member)
  redis.call('HINCRBY', F .. ':stats', 'submitted', 1)
  return {'queued', ring(F, model) and 1 or 0}
end
verb('submit', submit)
