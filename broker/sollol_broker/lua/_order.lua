-- The twin of fair_order.py. Pure. Times in virtual ms.
local SIZE_WEIGHT = 8
local NORMAL_MS = 15000                    -- head start of priority 5

-- returns start, finish, rank
local function tag(now, finish, cost, weight, head_start, speed, weights, usual)
  local start = math.max(now, finish)
  local behind = (head_start - NORMAL_MS + SIZE_WEIGHT * (cost - usual)) * speed / math.max(1, weights)
  return start, start + cost / weight, start + behind
end

local function corrected(now, finish, predicted, actual, weight)
  return math.max(now, finish + (actual - predicted) / weight)
end
