-- drive: become the one who moves a batch on, stay it, or leave it to others; tells how it stands. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 batch 2 driver: a name that no other process has; '' = only look 3 lease ms; 0 = leave it
--      4 when it leaves: ms until somebody else should look after it 5 begin its TTL anew 0|1; it is while it has jobs
-- returns {1 the caller drives | 0, fields of the batch (flat), open chunks (flat)} | {-1}: not known
-- allow-oom: what is accepted has to move on.
-- The lease only spares double work: two drivers at once do no harm (see is_wanted and settle_chunk).
local function drive(keys, a)
  local F, id, who, lease, now = keys[1], a[1], a[2], tonumber(a[3]), now_ms()
  local key, due = batch_key(F, id), F .. ':batch_due'
  local h = redis.call('HMGET', key, 'state', 'driver', 'until', 'ttl')
  if not h[1] then
    redis.call('ZREM', due, id)
    return {-1}
  end
  local drives = 0
  -- Further off than a lease can be: the clock has stepped back.
  local left = tonumber(h[3]) - now
  if not is_over(h[1]) and who ~= '' and (h[2] == who or left <= 0 or left > MOST_DRIVE_MS) then
    if lease > 0 then
      drives = 1
      redis.call('HSET', key, 'driver', who, 'until', ms(now + lease))
      redis.call('ZADD', due, ms(now + lease), id)
    elseif h[2] == who then
      redis.call('HSET', key, 'driver', '', 'until', '0')
      redis.call('ZADD', due, ms(now + tonumber(a[4])), id)
    end
  end
  local is_alive = a[5] == '1' or redis.call('HLEN', batch_open_key(F, id)) > 0
  if is_alive and not is_over(h[1]) then keep_batch(F, id, h[4]) end
  return {drives, redis.call('HGETALL', key), redis.call('HGETALL', batch_open_key(F, id))}
end
verb('drive', drive, {'allow-oom'})
