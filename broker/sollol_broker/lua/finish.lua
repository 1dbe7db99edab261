-- finish: give a job its answer and, in the same call, claim the next. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 id 2 fence 3 nonce 4 answer (msgpack) 5 prompt tokens 6 output tokens 7 run ms (each -1: not known)
--      8… the arguments of claim, or none
-- returns {1 taken | 0 the job is no longer the caller's, claim's reply or nothing}
-- allow-oom: an answer must get out when memory is full; it frees more than it takes.
local LEARN = 0.1                          -- weight of the newest run
local LEAST_CHARS_PER_TOKEN, MOST_CHARS_PER_TOKEN = 0.5, 12  -- beyond: the backend had most of the prompt in its cache

local function blend(old, new) return old and (1 - LEARN) * tonumber(old) + LEARN * new or new end

-- Learns from one run what to expect of the next; returns the reference ms that it took.
local function learn(F, model, h, prompt, output, run)
  local key, own, all, chars = learned_key(F, model), 'o:' .. h.fair.app .. ':' .. h.task, 'o:' .. h.task, tonumber(h.chars or 0)
  local old = redis.call('HMGET', key, own, all, 'cpt', 'runs', 'ref', 'work', 'usual')
  local runs = tonumber(old[4] or 0) + 1
  local fields = {'runs', runs, 'work', ms(tonumber(old[6] or 0) + h.fair.cost), 'usual', blend(old[7], h.fair.cost)}
  if output > 0 and h.task ~= 'embedding' then
    fields[7], fields[8], fields[9], fields[10] = own, blend(old[1], output), all, blend(old[2], output)
  end
  if prompt > h.extra and chars > 0 then
    local cpt = chars / (prompt - h.extra)
    if cpt > LEAST_CHARS_PER_TOKEN and cpt < MOST_CHARS_PER_TOKEN then
      fields[#fields + 1] = 'cpt'
      fields[#fields + 1] = blend(old[3], cpt)
    end
  end
  redis.call('HSET', key, unpack(fields))
  local bin = late_bin(tonumber(h.predicted or 0), run)
  if bin and redis.call('HINCRBY', late_key(F, model), bin, 1) == 1 then
    redis.call('PEXPIRE', late_key(F, model), LEARNED_TTL_MS)
  end
  if runs % LATE_KEPT == 0 then forget_runs(F, model) end
  if prompt < 0 or output < 0 then return nil end
  local ref = read_reference(old[5])
  return ref.a * prompt + ref.b * output
end

local function finish(keys, a)
  local F, id = keys[1], a[1]
  local h = redis.call('HMGET', job_key(F, id), 'state', 'fence', 'nonce', 'worker', 'hfence', 'hnonce', 'queue', 'fair', 'task',
    'chars', 'predicted', 'extra', 'part')
  local taken = 0
  if win(F, id, h[1], h[2], h[3], h[4], h[5], h[6], a[2], a[3]) then
    if h[13] then h[10], h[11] = nil, nil end  -- what was asked for, and predicted, is more than what was done
    local job = {fair = read_fair(h[8]), task = h[9] or 'generation', chars = h[10], predicted = h[11], extra = tonumber(h[12] or 0)}
    local used = learn(F, h[7], job, tonumber(a[5]), tonumber(a[6]), tonumber(a[7]))
    redis.call('HSET', job_key(F, id), 'tokens', a[5] .. '|' .. a[6])
    note_tokens(F, job.fair.app, tonumber(a[5]), tonumber(a[6]))
    end_job(F, id, 'done', a[4], now_ms(), used)
    taken = 1
  elseif h[1] == 'done' and h[2] == a[2] and h[3] == a[3] then
    taken = 1                              -- this very call, repeated
    affirmed(job_key(F, id), 'done')
  end
  if #a > 7 then return {taken, claim_for(F, a, 8)} end
  return {taken}
end
verb('finish', finish, {'allow-oom'})
