-- Batches: many items that become jobs piece by piece. A piece, a chunk, is a job with the id BATCH~TAG~START~COUNT.
-- F:batch:ID       fields: state kind model app priority tag digest template on_error keep ttl
--                  created started ended                  ms of Redis' own clock
--                  fed closed next                        items taken in; whether that is all; the first that is in no chunk
--                  in_bytes out_bytes                     of items not answered yet; of results
--                  completed failed why driver until      counts; why it failed; who drives it, and until when
--                  seen_ms seen_chars                     what chunks took lately, from claim to answer: decaying sums
-- F:batch_in:ID    hash: index → item, until its answer is there
-- F:batch_open:ID  hash: start → count of chunks that are jobs now; "count!" of one that failed and is to be cut
-- F:batch_out:ID   hash: start → answer or error of a chunk
-- F:batch_map:ID   zset: "start:count:state:sent" of ended chunks by start (sent: the count that its job had)
-- F:batch_done:ID  stream: the same in the order in which they ended
local BATCH_PARTS = {batch_key, batch_in_key, batch_open_key, batch_out_key, batch_map_key, batch_done_key}
local BATCHES_KEPT = 10000
local SEEN_DECAY = 0.8                     -- of the sums, with each chunk

-- returns batch, tag, start, count of a chunk's job; nil: any other job
local function chunk_of(id)
  if not string.find(id, '~', 1, true) then return nil end
  return string.match(id, '^([^~]+)~(%x+)~(%d+)~(%d+)$')
end

local function is_over(state) return state ~= 'pending' and state ~= 'running' end

-- All of a batch lives for its TTL from now on.
local function keep_batch(F, batch, ttl)
  for _, key in ipairs(BATCH_PARTS) do redis.call('PEXPIRE', key(F, batch), ttl) end
end

-- Whether a job may come in: of a chunk's, only what its batch still waits for, in the very call that takes it in. So
-- neither a second driver nor one that has slept through a cancel can start anything.
local function is_wanted(F, id)
  local batch, tag, start, count = chunk_of(id)
  if not batch then return true end
  local h = redis.call('HMGET', batch_key(F, batch), 'state', 'tag')
  return h[1] and not is_over(h[1]) and h[2] == tag and redis.call('HGET', batch_open_key(F, batch), start) == count
end

local function end_batch(F, batch, state, now, why)
  local key = batch_key(F, batch)
  redis.call('HSET', key, 'state', state, 'ended', ms(now), 'why', why)
  redis.call('DEL', batch_in_key(F, batch))
  redis.call('ZREM', F .. ':batch_due', batch)
  keep_batch(F, batch, redis.call('HGET', key, 'ttl'))
end

-- Ends a batch whose items have all ended. One without a single answer has failed.
local function end_if_done(F, batch, now)
  local h = redis.call('HMGET', batch_key(F, batch), 'closed', 'fed', 'completed', 'failed', 'state')
  local done = tonumber(h[3]) + tonumber(h[4])
  if h[1] ~= '1' or is_over(h[5]) or done < tonumber(h[2]) then return end
  local is_failure = done > 0 and h[3] == '0'
  end_batch(F, batch, is_failure and 'failed' or 'completed', now, is_failure and 'each of its items failed: see their errors' or '')
end

-- Writes down how a chunk ended, once: whoever comes second does not find it open any more.
-- sent: the count that its job had; it may have answered the first of its items only
local function settle_chunk(F, batch, start, count, state, sent, data, now)
  local key, inputs, fields, bytes = batch_key(F, batch), batch_in_key(F, batch), {}, 0
  local told = table.concat({start, count, state, sent}, ':')
  redis.call('HDEL', batch_open_key(F, batch), start)
  for i = 1, tonumber(count) do fields[i] = string.format('%.0f', tonumber(start) + i - 1) end
  for _, item in ipairs(redis.call('HMGET', inputs, unpack(fields))) do bytes = bytes + (item and #item or 0) end
  redis.call('HDEL', inputs, unpack(fields))
  redis.call('HINCRBY', key, 'in_bytes', -bytes)
  redis.call('HINCRBY', key, 'out_bytes', #data)
  redis.call('HSET', batch_out_key(F, batch), start, data)
  redis.call('ZADD', batch_map_key(F, batch), start, told)
  redis.call('XADD', batch_done_key(F, batch), '*', 'c', told)
  redis.call('HINCRBY', key, state == 'done' and 'completed' or 'failed', count)
  keep_batch(F, batch, redis.call('HGET', key, 'ttl'))
  end_if_done(F, batch, now)
end

-- What chunks of about this size take, by powers of two of their characters: "ms|characters|chunks", decaying sums. With
-- some models a call of many texts is the best, with others a call of few.
local function note_size(F, model, took, chars)
  if chars < 1 then return end
  local key, field = learned_key(F, model), 'z' .. math.floor(math.log(chars) / math.log(2))
  local spent, read, count = string.match(redis.call('HGET', key, field) or '', '^([%d.]+)|([%d.]+)|([%d.]+)$')
  redis.call('HSET', key, field, string.format('%.3f|%.0f|%.3f', SEEN_DECAY * (tonumber(spent) or 0) + took,
    SEEN_DECAY * (tonumber(read) or 0) + chars, SEEN_DECAY * (tonumber(count) or 0) + 1))
end

-- How many items of a chunk its job has answered; notes how long that took, for the size of the next ones.
local function answered_of(F, batch, id, count, now)
  local key = batch_key(F, batch)
  local job = redis.call('HMGET', job_key(F, id), 'claimed', 'chars', 'part', 'fence', 'queue', 'task')
  local fence, part = string.match(job[3] or '', '^(%d+):(%d+)$')
  local answered = (part and fence == job[4]) and math.min(tonumber(part), tonumber(count)) or tonumber(count)
  if job[1] then
    local took, chars = math.max(0, now - tonumber(job[1])), tonumber(job[2] or 0) * answered / tonumber(count)
    local seen = redis.call('HMGET', key, 'seen_ms', 'seen_chars')
    redis.call('HSET', key, 'seen_ms', ms(SEEN_DECAY * tonumber(seen[1] or 0) + took),
      'seen_chars', ms(SEEN_DECAY * tonumber(seen[2] or 0) + chars))
    if job[6] == 'embedding' then note_size(F, job[5], took, chars) end
  end
  return answered
end

-- A job has ended: if it is a chunk, its batch takes the answer. What failed with company is cut by the driver, until the
-- item at fault is alone.
local function end_chunk(F, id, state, data, now)
  local batch, tag, start, count = chunk_of(id)
  if not batch then return end
  local open, h = batch_open_key(F, batch), redis.call('HMGET', batch_key(F, batch), 'state', 'tag')
  if h[2] ~= tag or redis.call('HGET', open, start) ~= count then return end
  if is_over(h[1]) then
    redis.call('HDEL', open, start)
  elseif state ~= 'done' and state ~= 'cancelled' and tonumber(count) > 1 then
    redis.call('HSET', open, start, count .. '!')
  else
    local answered = tonumber(count)
    if state == 'done' then answered = answered_of(F, batch, id, count, now) end
    if answered < tonumber(count) then   -- a slow node: the rest is for whoever is free
      redis.call('HSET', open, string.format('%.0f', tonumber(start) + answered), tonumber(count) - answered)
    end
    settle_chunk(F, batch, start, answered, state, count, data, now)
  end
end
