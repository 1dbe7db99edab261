-- reply: say what has become of an order. Safe to repeat: whoever gave the order goes by its id.
-- KEYS 1 fabric prefix
-- ARGV 1 inbox of whoever gave the order 2 order id 3 'progress' | 'done' | 'failed' 4 what to say (msgpack)
-- returns 1 | 0 nobody waits there any more
local function reply(keys, a)
  return tell(keys[1], a[1], 't', 'reply', 'o', a[2], 'k', a[3], 'd', a[4]) and 1 or 0
end
verb('reply', reply, {'allow-oom'})
