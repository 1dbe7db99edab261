-- attend: say that a client lives; its inbox comes into being with it. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 inbox 2 inbox TTL ms 3 app 4 key part of the app 5 app's fields (msgpack map of strings) 6 TTL ms of the app's entry
-- returns 1 | 2 the inbox was made anew
local APP_KEPT_MS = 7 * 24 * 3600 * 1000
local APPS_KEPT = 10000                    -- callers of a gateway name themselves as they like
local function attend(keys, a)
  local F, now, app = keys[1], now_ms(), app_key(keys[1], a[4])
  local made = keep_inbox(F, a[1], tonumber(a[2]))
  set_fields(app, cmsgpack.unpack(a[5]))
  redis.call('HSET', app, 'name', a[3], 'seen', ms(now))
  redis.call('PEXPIRE', app, a[6])
  redis.call('ZADD', F .. ':apps', ms(now), a[3])
  redis.call('ZREMRANGEBYSCORE', F .. ':apps', '-inf', ms(now - APP_KEPT_MS))
  redis.call('ZREMRANGEBYRANK', F .. ':apps', 0, -APPS_KEPT - 1)
  return made
end
verb('attend', attend, {'allow-oom'})
