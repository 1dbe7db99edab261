-- Numbers and the clock, for all verbs.
local FENCED = true                        -- a test turns this off, and must then see answers doubled

local IDLE_TTL_MS = 60000                  -- an idle worker looks again every 1-2 s and renews this
local EVENTS_MAXLEN = 20000                -- entries; a stream longer than this is trimmed at its old end
local INBOX_MAXLEN = 100000
local ENDED_KEPT = 1000
local DEAD_KEPT = 10000
local DEAD_TTL_MS = 7 * 24 * 3600 * 1000
local LEARNED_TTL_MS = 30 * 24 * 3600 * 1000
local MOST_DRIVE_MS = 120000               -- the longest lease of a batch's driver
local TALLY_TTL_MS = 7 * 24 * 3600 * 1000

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + t[2] / 1000
end

-- Lua prints large numbers as 1.7e+12; scores and times need every digit.
local function ms(x) return string.format('%.3f', x) end
