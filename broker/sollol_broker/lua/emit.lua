-- emit: show a piece of the answer. Safe to repeat: seq decides.
-- KEYS 1 fabric prefix
-- ARGV 1 id 2 fence 3 nonce 4 seq, from 1 5 piece (msgpack) [6 characters said by earlier attempts, which this one goes on
--      with 7 how]: only with the first piece
-- returns 1 shown | 0 the job is no longer the caller's | -n not shown: piece n, before it, is missing (a failover lost it)
local function emit(keys, a)
  local F, id, seq = keys[1], a[1], tonumber(a[4])
  local job = job_key(F, id)
  local h = redis.call('HMGET', job, 'state', 'fence', 'nonce', 'seq', 'stream', 'inbox', 'hfence', 'hnonce', 'worker', 'hworker')
  if h[7] and h[7] == a[2] then            -- a second copy: it may speak only if the first has not
    if h[4] ~= '0' or not win(F, id, h[1], h[2], h[3], h[9], h[7], h[8], a[2], a[3]) then return 0 end
  elseif not held(h[1], h[2], h[3], a[2], a[3]) then
    return 0
  elseif h[7] then                         -- the first copy speaks: the second is no longer wanted
    tell(F, h[10], 't', 'cancel', 'j', id, 'f', h[7])
    forget_hedge(F, id)
  end
  if seq <= tonumber(h[4]) then return 1 end
  if seq > tonumber(h[4]) + 1 then return -(tonumber(h[4]) + 1) end
  redis.call('HSET', job, 'seq', seq)
  if a[6] then note_seam(F, id, a[6], a[7], now_ms()) end
  if seq == 1 then redis.call('HSET', job, 'first', ms(now_ms())) end
  local at = redis.call('XADD', events_key(F, id), 'MAXLEN', '~', EVENTS_MAXLEN, '*', 't', 'piece', 'f', a[2], 's', seq, 'd', a[5])
  if h[5] == '1' then tell(F, h[6], 't', 'piece', 'j', id, 'e', at, 'f', a[2], 's', seq, 'd', a[5]) end
  return 1
end
verb('emit', emit, {'allow-oom'})
