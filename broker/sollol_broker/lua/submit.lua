-- submit: take a job in. Safe to repeat: the id decides.
-- KEYS 1 fabric prefix
-- ARGV 1 id 2 model name 3 model key 4 app 5 app key 6 priority 0-10 7 head start ms (of the priority) 8 stream 0|1
--      9 ms until the deadline, 0 none 10 inbox of the submitter 11 result TTL ms 12 characters of the prompt
--      13 tokens of its pictures 14 most output tokens, 0 not said 15 context tokens asked for, 0 not said 16 task
--      17 affinity 18 hedge 1|0|-1 19 cache key, '' none 20 requires (msgpack, '' none) 21 accept with no node 0|1
--      22 nodes that should have it, '|node key|…|' or '' 23 envelope 24… blobs
-- returns {'queued', woken 0|1, …} | {'known', state} | {'shared', id, state} | {'no_node'} | {'full', reason, retry after ms, …}
--         …: what is left of the application's quota, see _admit.lua; nothing where it has none
-- Not allow-oom: a new job is what a full Redis must refuse.
local CHARS_PER_TOKEN = 4                  -- English text, before a model has told
local USUAL_OUTPUT = 256                   -- tokens, before an application has shown its own
local CHAT_FRAME = 8                       -- tokens that a template adds
local TEXTLESS = {embedding = true, reranking = true, warming = true}

-- What claim could not read would stop every worker at this queue.
local function is_readable(needs)
  if needs == '' then return true end
  local ok, wanted = pcall(cmsgpack.unpack, needs)
  if not ok or type(wanted) ~= 'table' then return false end
  local vram, labels = type(wanted.vram_mib), type(wanted.labels)
  return (vram == 'nil' or vram == 'number') and (labels == 'nil' or labels == 'table')
end

-- Clients refuse more than this (envelope.py); the rest is for what sealing adds. A number that is none would end the call
-- half done.
local SEALED_BYTES = 256
local MOST_ENVELOPE, MOST_BLOB, MOST_BLOBS = 1048576 + SEALED_BYTES, 33554432 + SEALED_BYTES, 134217728
local MOST_FIELD = 65536
local NUMBERS = {6, 7, 9, 11, 12, 13, 14, 15}

-- What is wrong with the arguments; nil: nothing.
local function fault(a)
  if #a < 23 then return 'arguments are missing' end
  if not string.match(a[1], '^[%w._~-]+$') or #a[1] > 200 then return 'a job id is of [A-Za-z0-9._~-], at most 200' end
  if not string.match(a[17], '^%x*$') or #a[17] > 16 then return 'an affinity is of [0-9a-f], at most 16' end
  for i = 1, 22 do
    if #a[i] > MOST_FIELD then return 'argument ' .. i .. ' is too long' end
  end
  for _, i in ipairs(NUMBERS) do
    local n = tonumber(a[i])
    if not n or not (n >= 0 and n < 1e15) then return 'argument ' .. i .. ' is no number from 0' end
  end
  if tonumber(a[6]) > 10 or tonumber(a[6]) % 1 ~= 0 then return 'a priority is a whole number from 0 to 10' end
  if not is_readable(a[20]) then return 'the requirements are malformed' end
  if #a[23] > MOST_ENVELOPE then return 'the envelope is longer than 1 MiB' end
  local blobs = 0
  for i = 24, #a do
    if #a[i] > MOST_BLOB then return 'a picture is larger than 32 MiB' end
    blobs = blobs + #a[i]
  end
  if blobs > MOST_BLOBS + (#a - 23) * SEALED_BYTES then return 'the pictures are larger than 128 MiB together' end
  return nil
end

-- Prompt tokens, output tokens to expect (the application's own mean for such tasks, capped by what it allows), and how
-- many runs these and the paces are learned from; and the fastest workers' pace.
local function expect(F, model, app, task, chars, extra, cap)
  local h = redis.call('HMGET', learned_key(F, model), 'cpt', 'o:' .. app .. ':' .. task, 'o:' .. task, 'runs', 'ref', 'usual')
  local prompt = math.ceil(chars / math.max(0.25, tonumber(h[1]) or CHARS_PER_TOKEN)) + extra + CHAT_FRAME
  local runs, ref = tonumber(h[4] or 0), read_reference(h[5])
  ref.usual = tonumber(h[6])
  if TEXTLESS[task] then return prompt, 0, runs, ref end
  local output = tonumber(h[2]) or tonumber(h[3]) or USUAL_OUTPUT
  if cap > 0 then output = math.min(output, cap) end
  return prompt, math.max(1, output), runs, ref
end

-- The job that answers the same request, if there is one that can still.
local function shared(F, request)
  local id = request ~= '' and redis.call('GET', cache_key(F, request))
  local state = id and redis.call('HGET', job_key(F, id), 'state')
  if state == 'queued' or state == 'running' or state == 'done' then return id, state end
  return nil
end

local function submit(keys, a)
  local wrong = fault(a)
  if wrong then return redis.error_reply('ERR ' .. wrong) end
  local F, id, model, app, request = keys[1], a[1], a[3], a[5], a[19]
  local job = job_key(F, id)
  local state = redis.call('HGET', job, 'state')
  if state then return {'known', affirmed(job, state)} end
  if not is_wanted(F, id) then return {'known', 'cancelled'} end
  local now, same, same_state = now_ms(), shared(F, request)
  if same and same_state == 'done' then return {'shared', same, same_state} end
  local is_served = redis.call('ZCOUNT', serves_key(F, model), ms(now), '+inf') > 0
  if not is_served and a[21] ~= '1' and redis.call('HGET', formable_key(F, model), 'ok') ~= '1' then return {'no_node'} end
  if same then return {'shared', same, same_state} end
  if memory_is_full(F, now) then return {'full', 'memory', 5000} end

  local prompt, output, runs, ref = expect(F, model, app, a[16], math.max(0, tonumber(a[12])), math.max(0, tonumber(a[13])), tonumber(a[14]))
  local cost = ref.a * prompt + ref.b * output
  local bytes = 0
  for i = 23, #a do bytes = bytes + #a[i] end
  local policy = read_policy(F, model, app)
  local ask = {bytes = bytes, tokens = prompt + output, deadline = tonumber(a[9]), runs = runs,
    rank = function() return next_rank(F, model, app, tonumber(a[6]), tonumber(a[7]), cost, ref) end}
  local why, retry = refusal(F, model, app, policy, ask, ref, now)
  if why then return {'full', why, math.ceil(math.max(LEAST_RETRY_MS, retry)), unpack(left_of_quota(F, model, app, policy, now))} end

  local priority, deadline = tonumber(a[6]), a[9] == '0' and '0' or ms(now + tonumber(a[9]))
  local rank, fair = enter_line(F, model, app, priority, policy.weight, tonumber(a[7]), cost, ref, policy.max_bytes and bytes or 0,
    policy.quota and 1 or 0)
  local context, flags = tonumber(a[15]), ''
  if priority <= 1 then flags = flags .. 'b' end
  if a[13] ~= '0' then redis.call('HSET', job, 'extra', a[13]) end
  if context > prompt then flags = flags .. 'c' end
  if a[20] ~= '' then flags = flags .. 'r' end
  if a[22] ~= '' then flags = flags .. 'p' end
  local member = string.format('%s|%.0f|%.0f|%.0f|%s|%s', id, prompt, output, now, flags, a[17])
  local hedge = (a[18] == '1' or (a[18] == '0' and priority >= policy.hedge_from)) and '1' or '0'
  redis.call('HSET', job, 'state', 'queued', 'model', a[2], 'queue', model, 'app', a[4], 'priority', priority,
    'stream', a[8], 'inbox', a[10], 'ttl', string.format('%.0f', tonumber(a[11])), 'rank', rank, 'member', member,
    'submitted', ms(now), 'deadline', deadline, 'fair', fair, 'task', a[16], 'chars', a[12])
  redis.call('HSET', blob_key(F, id), 'env', a[23])
  if a[20] ~= '' then redis.call('HSET', job, 'requires', a[20]) end
  if a[22] ~= '' then redis.call('HSET', job, 'prefer', a[22]) end
  if context > prompt then redis.call('HSET', job, 'context', context) end
  if hedge == '1' then redis.call('HSET', job, 'hedge', hedge) end
  if #a > 23 then redis.call('HSET', job, 'blobs', #a - 23) end
  for i = 24, #a do redis.call('HSET', blob_key(F, id), i - 24, a[i]) end
  if deadline ~= '0' then redis.call('ZADD', F .. ':deadlines', deadline, id) end
  if request ~= '' then
    redis.call('HSET', job, 'cache', request)
    redis.call('SET', cache_key(F, request), id)
  end
  redis.call('ZADD', queue_key(F, model), rank, member)
  if not is_served then redis.call('HSETNX', F .. ':models', model, a[2]) end
  redis.call('HINCRBY', F .. ':stats', 'submitted', 1)
  if policy.max_bytes then redis.call('HINCRBY', F .. ':stats', 'bytes', bytes) end
  if policy.quota then
    redis.call('HINCRBY', usage_key(F, app), 'n', 1)
    redis.call('PEXPIRE', usage_key(F, app), TALLY_TTL_MS)
  end
  note_submitted(F, app, a[4], now)
  return {'queued', ring(F, model) and 1 or 0, unpack(left_of_quota(F, model, app, policy, now))}
end
verb('submit', submit)
