-- elect: become the leader, stay it, or step down. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 candidate: a name that no other process has, or ever had 2 lease ms; 0 = step down
-- returns {term of the caller, 0 when it does not lead, ms until the present lease runs out, the leader or ''}
-- allow-oom: a full Redis needs its leader most.
-- A term is the moment of its election, in us. Redis may come back empty or older; a counter would then give a term
-- out twice, and the orders of the last leader would count as newer than those of the present one.
local function elect(keys, a)
  local key, candidate, lease, now = keys[1] .. ':leader', a[1], tonumber(a[2]), now_ms()
  local leader, term, left = read_leader(keys[1], now)
  if leader == candidate and left > 0 then
    if lease == 0 then
      redis.call('HSET', key, 'until', '0')
      return {0, '0', ''}
    end
  elseif left > 0 or lease == 0 then
    return {0, ms(math.max(0, left)), left > 0 and leader or ''}
  else
    term = math.max(term + 1, math.floor(now * 1000))
    redis.call('HSET', key, 'id', candidate, 'term', string.format('%.0f', term), 'since', ms(now))
  end
  redis.call('HSET', key, 'until', ms(now + lease), 'lease', a[2])
  return {term, ms(lease), candidate}
end
verb('elect', elect, {'allow-oom'})
