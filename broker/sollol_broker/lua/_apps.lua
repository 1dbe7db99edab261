-- What each application has asked for and got: fields of F:usage:APP, beside those of its quota (_admit.lua):
--   submitted done failed cancelled expired dead          jobs; one that is tried again counts again
--   tokens_in tokens_out                                  of its answers, as far as the backends count them
--   minute this last                                      the present minute, jobs of it and of the one before: its rate
local APP_MINUTE_MS = 60000

local function note_submitted(F, app, name, now)
  local key, minute = usage_key(F, app), math.floor(now / APP_MINUTE_MS)
  local h = redis.call('HMGET', key, 'submitted', 'minute', 'this', 'last')
  local at, this, last = tonumber(h[2]), tonumber(h[3] or 0), tonumber(h[4] or 0)
  if at ~= minute then this, last = 0, at == minute - 1 and this or 0 end
  redis.call('HSET', key, 'submitted', tonumber(h[1] or 0) + 1, 'minute', minute, 'this', this + 1, 'last', last)
  if not h[1] then redis.call('PEXPIRE', key, TALLY_TTL_MS) end
  redis.call('ZADD', F .. ':apps', ms(now), name)
end

local function note_ended(F, app, state)
  if app == '' then return end
  redis.call('HINCRBY', usage_key(F, app), state, 1)
  redis.call('PEXPIRE', usage_key(F, app), TALLY_TTL_MS)
end

local function note_tokens(F, app, prompt, output)
  if app == '' then return end
  if prompt > 0 then redis.call('HINCRBY', usage_key(F, app), 'tokens_in', prompt) end
  if output > 0 then redis.call('HINCRBY', usage_key(F, app), 'tokens_out', output) end
end
