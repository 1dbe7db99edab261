-- cancel: end a job unanswered, waiting or running. Safe to repeat.
-- KEYS 1 fabric prefix
-- ARGV 1 id
-- returns 'cancelled' | the state in which it had already ended | 'unknown'
local function cancel(keys, a) return cancel_job(keys[1], a[1], now_ms()) end
verb('cancel', cancel, {'allow-oom'})
